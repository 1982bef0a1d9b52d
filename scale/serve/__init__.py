"""The server on a Ray cluster: replicas of the models behind one HTTP server, by Ray Serve.

Imports `scale.ray_pool` and `apps.server`.
Start with `app.py`.
"""
