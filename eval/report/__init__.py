"""The report of a run, as Markdown and as one HTML file.

Imports `eval.geneval` and `eval.runs`.
Start with `data.py`.
"""
