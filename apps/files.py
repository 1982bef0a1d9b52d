"""Output of the command line and the web page: new files, the settings of images, JSON on stdout."""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from ..blocks.errors import OptionError, ResourceError, printable
from ..blocks.files import atomic_write, rename_new, temporary_path
from ..blocks.image_io import write_png

PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Formats in which pictures are written, by the suffix of the file's name."""

_SLUG_LENGTH = 40
_SETTING_TYPES = {"seed": int, "guidance_scale": float, "temperature": float, "top_k": int, "top_p": float}


def slug(text: str) -> str:
    """A text made fit for a file name: lower-case words in any script, joined by hyphens."""
    words = re.sub(r"[^\w]+|_+", "-", unicodedata.normalize("NFKC", text).lower())
    return words[:_SLUG_LENGTH].strip("-") or "picture"


def write_new(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Write a complete new file and return its path; an existing file is never replaced.

    If `path` is taken, the first free name of `a-2.png`, `a-3.png`, ... is used. If `write` fails, nothing is
    left behind. Raises `ResourceError` if the file can't be written.
    """
    with _write_errors(path), temporary_path(path) as temporary:
        with temporary.open("wb") as stream:
            write(stream)
        return _rename_to_free_name(temporary, path)


def write_file(path: Path, write: Callable[[BinaryIO], object], force: bool = False) -> None:
    """Write a complete file, or leave nothing behind; an existing file is replaced only with `force`.

    Raises `OptionError` for a file that exists and `ResourceError` if it can't be written.
    """
    with _write_errors(path):
        if force:
            with atomic_write(path, durable=False) as stream:
                write(stream)
            return
        with temporary_path(path) as temporary:
            with temporary.open("wb") as stream:
                write(stream)
            try:
                rename_new(temporary, path)
            except FileExistsError:
                raise exists_error(path) from None


def exists_error(path: Path) -> OptionError:
    """What is said of a file that would be replaced."""
    return OptionError(f"{path} exists; accepted: another --output, or --force to replace it")


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Make the folder of a file; what the disk refuses within becomes a `ResourceError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ResourceError(f"can't write {path}: {error.strerror or error}") from error


def write_picture(image: Image.Image, suffix: str, stream: BinaryIO) -> None:
    """Write a picture in the format of a suffix of `PICTURE_FORMATS`, with its settings."""
    match PICTURE_FORMATS[suffix.lower()]:
        case "PNG":
            write_png(image, stream)
        case "JPEG":
            image.save(stream, "JPEG", quality=95, subsampling=0)
        case "WEBP":
            image.save(stream, "WEBP", lossless=True)


def _rename_to_free_name(source: Path, path: Path) -> Path:
    target, number = path, 1
    while True:
        try:
            rename_new(source, target)
            return target
        except FileExistsError:
            number += 1
            target = path.with_stem(f"{path.stem}-{number}")


def typed_settings(settings: dict[str, str]) -> dict[str, str | int | float]:
    """The settings stored with a generated image, with numeric ones converted from text."""
    return {name: _SETTING_TYPES.get(name, str)(value) for name, value in settings.items()}


def print_json(content: dict[str, Any]) -> None:
    """Print indented JSON, control characters escaped; NaN and infinities are refused."""
    print(printable(json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False)))
