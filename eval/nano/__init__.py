"""How well the embedded models know their world.

Imports `eval.geneval`, `nano.world` and both pipelines.
Start with `janus.py`.
"""
