"""Defaults and texts that the command line and the server share; imports nothing heavy."""

import os
from importlib import metadata

DEFAULT_MODEL = "janus-nano"
"""The embedded model that generates images and answers questions."""

DEFAULT_GROUNDING_MODEL = "vl2-nano"
"""The embedded model that also locates things in images."""

_EMBEDDED = (DEFAULT_MODEL, DEFAULT_GROUNDING_MODEL)

QUANTIZE_HELP = "int8, int4 or fp8 weights in the decoder (default: as stored, but fp8 blocks unpacked)"


def default_model(embedded: str = DEFAULT_MODEL) -> str:
    """The model of a command that names none: BIFRONS_MODEL, else an embedded one."""
    return os.environ.get("BIFRONS_MODEL") or embedded


def default_models() -> list[str]:
    """The models of the server and the page that name none: BIFRONS_MODEL, else both embedded ones."""
    return [os.environ["BIFRONS_MODEL"]] if os.environ.get("BIFRONS_MODEL") else [*_EMBEDDED]


def version() -> str:
    """The installed version of the package; it may also be run from a checkout that isn't installed."""
    try:
        return metadata.version("bifrons")
    except metadata.PackageNotFoundError:
        return "(not installed)"
