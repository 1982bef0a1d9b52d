"""Suites that ask questions about pictures: their files, their questions and how answers become scores.

Imports `blocks` and `eval.geneval`. Start with `suite.py`; `catalog.py` lists the suites.
"""
