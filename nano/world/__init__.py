"""The synthetic worlds of the embedded models: scenes, prompts and questions, renderers and a detector.

Imports `blocks` and `vl2` (for the format of boxes).
The world of shapes starts with `scene.py`, the world of things (GenEval's 80 classes) with `catalog.py`.
Read on in `sprites`, `requests`, `layout`, `painting`; for sentences in `names`, `reading`, `describing`
and `sampling`.
"""
