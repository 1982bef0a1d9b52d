"""GenEval: prompts, detectors, the scorer and its intervals.

Imports `eval`, `nano.world` and `blocks`.
Start with `scoring.py`.
"""
