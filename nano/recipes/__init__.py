"""Configs, training data and settings of the embedded models.

Imports `nano.world`, `janus`, `vl2` and `learn`.
Start with `train.py`.
"""
