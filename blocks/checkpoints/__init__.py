"""Model folders: find, read, map key by key, load strictly, quantize and write.

Imports `blocks`, `blocks.kernels` and `blocks.model`.
Start with `loader.py`.
"""
