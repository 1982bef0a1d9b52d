"""The small world of the embedded models: scenes, their sentences, the renderer and the exact detector.

Imports `blocks` and `vl2` (for the format of boxes).
Start with `scene.py`.
"""
