"""A restartable evaluation run: its folder, recipe, workers and stages.

Imports `eval.geneval`, `nano.world`, `janus` and `blocks`.
Start with `stages.py`.
"""
