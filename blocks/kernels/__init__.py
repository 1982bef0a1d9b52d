"""Fast paths for one CUDA GPU (Triton) and for CPUs, each behind the signature of a plain PyTorch function.

Imports nothing of the project but `blocks` itself: kernels take tensors and numbers, never modules.
Start with `dispatch.py` (when a kernel is used), then `decode_attention.py`.
"""
