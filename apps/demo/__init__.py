"""The Gradio page: create, ask, find.

Imports `apps` and both pipelines.
Start with `app.py`.
"""
