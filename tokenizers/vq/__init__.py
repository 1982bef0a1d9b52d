"""The VQ image tokenizer: encoder, codebook and decoder, and its fused CUDA path.

Imports `blocks` and `blocks.kernels`.
Start with `model.py`.
"""
