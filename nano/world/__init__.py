"""The synthetic world of the embedded models: scenes, prompts and questions, renderer and detector.

Imports `blocks` and `vl2` (for the format of boxes).
Start with `scene.py`.
"""
