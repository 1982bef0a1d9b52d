"""The decoder's fast path on CUDA: decode steps by kernels, fused weights, and CUDA graphs.

Imports `blocks.model` and `blocks.kernels`.
Start with `cuda_graphs.py` (capture and replay), then `decode_step.py`.
"""
