"""Vision-language models that answer questions about pictures: by HTTP or in process, with kept answers.

Imports `blocks`, `janus`, `vl2`, `eval.suites` and `eval.runs`.
Start with `judge.py`; `stage.py` judges a run.
"""
