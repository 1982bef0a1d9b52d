"""What the commands leave behind: files that appear whole and replace nothing, and JSON on stdout."""

import json
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ..blocks.errors import OptionError

_SLUG_LENGTH = 40


def slug(text: str) -> str:
    """A text as part of a file name: lower-case words of any script, joined by hyphens."""
    words = re.sub(r"[^\w]+|_+", "-", unicodedata.normalize("NFKC", text).lower())
    return words[:_SLUG_LENGTH].strip("-") or "picture"


def write_new(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Write a file whole or not at all, and never over another: where `path` is taken, the next free name
    (`a-2.png`, `a-3.png`, ...) is. Returns the name; an `OptionError` says why it can't be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as stream:
                write(stream)
            return _give_name(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OptionError(f"can't write {path}: {error.strerror or error}") from error


def _give_name(part: Path, path: Path) -> Path:
    number = 1
    while True:
        final = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        number += 1
        try:
            # A link is refused where the name exists, which no rename is.
            os.link(part, final)
            return final
        except FileExistsError:
            continue
        except OSError:  # a file system without links: look first, then rename
            if not final.exists():
                part.rename(final)
                return final


def print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False))
