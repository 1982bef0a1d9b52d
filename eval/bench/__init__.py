"""Speed: our models at released sizes beside the hardware's limit and a peer.

Imports `eval`, `janus`, `vl2` and `blocks`.
Start with `run.py`.
"""
