"""The fast path on CUDA: the decoder by kernels, its cache, fused weights, and steps by CUDA graphs.

Imports `blocks.sampling`, `blocks.model` and `blocks.kernels`.
Start with `cuda_graphs.py` (capture and replay), then `packed_decoder.py` and `graph_runner.py`.
"""
