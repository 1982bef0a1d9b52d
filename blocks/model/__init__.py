"""The transformer of both families in plain PyTorch: decoder, attention, experts, kv cache, vision encoder.

Imports `blocks` and `blocks.kernels`.
Start with `decoder.py`.
"""
