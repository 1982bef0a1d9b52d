"""Output of the command line and the web page: new files, the settings of images, JSON on stdout."""

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ..blocks.errors import OptionError, printable
from ..blocks.files import rename_new, temporary_path

_SLUG_LENGTH = 40
_SETTING_TYPES = {"seed": int, "guidance_scale": float, "temperature": float, "top_k": int, "top_p": float}


def slug(text: str) -> str:
    """A text made fit for a file name: lower-case words in any script, joined by hyphens."""
    words = re.sub(r"[^\w]+|_+", "-", unicodedata.normalize("NFKC", text).lower())
    return words[:_SLUG_LENGTH].strip("-") or "picture"


def write_new(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Write a complete new file and return its path; an existing file is never replaced.

    If `path` is taken, the first free name of `a-2.png`, `a-3.png`, ... is used. If `write` fails, nothing is
    left behind. Raises `OptionError` if the file can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_path(path) as temporary:
            with temporary.open("wb") as stream:
                write(stream)
            return _rename_to_free_name(temporary, path)
    except OSError as error:
        raise OptionError(f"can't write {path}: {error.strerror or error}") from error


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
