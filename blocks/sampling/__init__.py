"""Requests, and how their tokens are drawn from logits.

Imports `blocks.kernels` and `blocks.errors`.
Start with `request.py`, then `sampling.py`.
"""
