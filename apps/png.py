"""Settings in PNG files: written as text chunks, which any viewer of metadata shows, and read back."""

from pathlib import Path
from typing import BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..blocks.errors import PictureError

_NUMBERS = {"seed": int, "guidance_scale": float, "temperature": float, "top_k": int, "top_p": float}


def write_png(picture: Image.Image, stream: BinaryIO) -> None:
    """Write a picture as PNG with the texts of its `info`: as `tEXt`, or `iTXt` where Latin-1 won't do."""
    chunks = PngInfo()
    for name, value in texts(picture).items():
        chunks.add_text(name, value)
    picture.save(stream, format="PNG", pnginfo=chunks)


def texts(picture: Image.Image) -> dict[str, str]:
    """The texts in a picture's `info`, where the pipelines put its settings."""
    found = picture.info.items()
    return {name: str(value) for name, value in found if isinstance(name, str) and isinstance(value, str)}


def read_settings(path: Path) -> dict[str, str]:
    """The text chunks of a PNG file. A `PictureError` where it is none."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()
            return texts(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise PictureError(f"{path} can't be read as PNG: {error}") from error


def typed(settings: dict[str, str]) -> dict[str, str | int | float]:
    """A picture's settings with numbers as numbers."""
    return {name: _NUMBERS.get(name, str)(value) for name, value in settings.items()}
