"""Configs, training data and training scripts of the embedded models.

Imports `nano.world`, `janus` and `vl2`.
Start with `janus.py`.
"""
