"""Fast paths for one CUDA GPU (Triton) and for CPUs, each behind the signature of a plain PyTorch function.

Imports nothing else of the project but `blocks/*.py`: kernels take tensors and numbers, never modules.
Start with `dispatch.py` (when a kernel is used), then `attention_decode.py`.
"""
