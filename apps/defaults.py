"""What the command line and the server take and tell when nothing is said; imports nothing heavy."""

from importlib import metadata

DEFAULT_MODEL = "janus-nano"
"""The embedded model that paints and answers."""

DEFAULT_FINDER = "vl2-nano"
"""The embedded model that also points at things."""

QUANTIZE_HELP = "int8, int4 or fp8 weights in the decoder (default: as the model's folder has them)"


def version() -> str:
    """Of the package, which may also be a mere folder on the path."""
    try:
        return metadata.version("bifrons")
    except metadata.PackageNotFoundError:
        return "(not installed)"
