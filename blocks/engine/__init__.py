"""Generation: requests, the scheduler, prefill, decode steps, sampling and CUDA graphs.

Imports `blocks.model` and `blocks.kernels`.
Start with `generate.py` (the plain loop), then `scheduler.py` (continuous batching).
"""
