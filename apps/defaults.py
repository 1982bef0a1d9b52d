"""Defaults and texts that the command line and the server share; imports nothing heavy."""

from importlib import metadata

DEFAULT_MODEL = "janus-nano"
"""The embedded model that generates images and answers questions."""

DEFAULT_GROUNDING_MODEL = "vl2-nano"
"""The embedded model that also locates things in images."""

QUANTIZE_HELP = "int8, int4 or fp8 weights in the decoder (default: as stored in the model's folder)"


def version() -> str:
    """The installed version of the package; it may also be run from a checkout that isn't installed."""
    try:
        return metadata.version("bifrons")
    except metadata.PackageNotFoundError:
        return "(not installed)"
