"""What the command line and the server take when nothing is said; imports nothing, so that help is quick."""

DEFAULT_MODEL = "janus-nano"
"""The embedded model that paints and answers."""

DEFAULT_FINDER = "vl2-nano"
"""The embedded model that also points at things."""

QUANTIZE_HELP = "int8 or int4 weights in the decoder (default: as the model's folder has them)"
