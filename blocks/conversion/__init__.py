"""Writing model folders: sharded safetensors, quantized on the way, and conversion between formats.

Imports `blocks.checkpoints` and `blocks.model`.
Start with `convert.py`.
"""
