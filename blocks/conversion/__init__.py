"""Writing model folders: sharded safetensors, quantization while writing, and conversion between formats.

Imports `blocks.checkpoints` and `blocks.model`.
Start with `convert.py`.
"""
