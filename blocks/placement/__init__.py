"""Where weights go: memory estimates, device maps and offload to the CPU.

Imports `blocks.model` and `blocks.checkpoints`.
Start with `loading.py`.
"""
