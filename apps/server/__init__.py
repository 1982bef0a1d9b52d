"""The OpenAI-compatible HTTP server.

Imports `apps`, both pipelines and `blocks.engine`.
Start with `app.py`.
"""
