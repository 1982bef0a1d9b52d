"""The old place of `blocks.image_io`, for the modules that still import from here."""

from ..image_io import write_png

__all__ = ["write_png"]
