"""How the embedded models are made: their configs, data and training scripts.

Imports `nano.world`, `janus` and `vl2`.
Start with `janus.py`.
"""
