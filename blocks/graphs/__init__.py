"""The decoder's fast path on CUDA: forward passes by kernels, fused weights, and CUDA graphs.

Imports `blocks.model` and `blocks.kernels`.
Start with `cuda_graphs.py` (capture and replay), then `packed_decoder.py`.
"""
