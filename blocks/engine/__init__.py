"""The scheduler of all generation, and the runner in plain PyTorch.

Imports `blocks.graphs`, `blocks.sampling`, `blocks.model` and `blocks.kernels`.
Start with `scheduler.py` (continuous batching), then `plain_runner.py` and `generate.py` (for pipelines).
"""
