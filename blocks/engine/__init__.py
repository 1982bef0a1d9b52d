"""Generation: requests, the scheduler, prefill, sampling, and decode steps as CUDA graphs.

Imports `blocks.graphs`, `blocks.model` and `blocks.kernels`.
Start with `generate.py` (the plain loop), then `scheduler.py` (continuous batching).
"""
