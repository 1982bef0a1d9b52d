"""Conversations: messages, image input and text generation, shared by both families.

Imports `blocks.engine` and `tokenizers`.
Start with `pipeline.py`.
"""
