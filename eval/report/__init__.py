"""The report of a run, as Markdown and as one HTML file.

Imports `eval.geneval` and `eval.runs`.
`data.py` reads a run folder; `render.py` fills the templates.
"""
