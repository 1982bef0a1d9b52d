"""Benchmarks of reading pictures: boxes, answers and choices, from files in the benchmarks' own formats.

Imports `vl2`, `eval.suites` and `eval.judges`. Start with `benchmarks.py`; `run.py` runs one.
"""
