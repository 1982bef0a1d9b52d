"""What the command line and the server take when nothing is said; imports nothing, so that help is quick."""

DEFAULT_MODEL = "janus-nano"
"""The embedded model that every command runs."""
