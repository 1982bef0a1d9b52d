"""The report of a run, as Markdown and as one HTML file.

Imports `eval.geneval`.
`data.py` reads a run folder; `render.py` fills the templates.
"""
