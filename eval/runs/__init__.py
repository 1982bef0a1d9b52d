"""A restartable evaluation run: its folder, recipe, workers and stages.

Imports `eval.geneval`, `janus` and `blocks`.
Start with `stages.py`.
"""
