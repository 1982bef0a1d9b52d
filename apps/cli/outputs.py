"""Where results go, checked before a model is loaded: a file, or standard output as `-`."""

import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from ...blocks.errors import OptionError, ResourceError
from ..files import PICTURE_FORMATS, exists_error, write_file, write_picture
from .inputs import user_path
from .output import stdout_errors

STDOUT = Path("-")


def check_output(
    output: str, suffixes: Iterable[str] = PICTURE_FORMATS, force: bool = False, json: bool = False
) -> Path:
    """The file that `--output` names, or `STDOUT`, where `json` must not go, too.

    Raises `OptionError` for another suffix and for a file that exists, unless `force`d, and `ResourceError`
    for a folder that can't be written to.
    """
    if output == str(STDOUT):
        if json:
            raise OptionError("output is - and --json prints to standard output, too; accepted: one of them")
        if sys.stdout is not None and sys.stdout.isatty():
            raise OptionError("output is -, which is a terminal; accepted: bifrons ... -o - > FILE")
        return STDOUT
    target = user_path(output)
    if target.suffix.lower() not in (accepted := list(suffixes)):
        raise OptionError(f"output is {output!r}; accepted: a name that ends in {or_list(accepted)}")
    if os.path.isdir(target):
        raise OptionError(f"output is {output!r}, a folder; accepted: the name of a file")
    if os.path.lexists(target) and not force:
        raise exists_error(target)
    check_folder(target.parent, target)
    return target


def check_folder(folder: Path, target: Path) -> None:
    """Raise `ResourceError` unless `target` can be written into a folder, which may have to be made."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        problem = "may not be written to" if os.path.isdir(folder) else "is no folder"
        raise ResourceError(f"can't write {target}: {folder} {problem}; accepted: another --output")


def write_output(target: Path, write: Callable[[BinaryIO], object], force: bool = False) -> None:
    """Write a file, or the same bytes to standard output. Raises `OptionError` and `ResourceError`."""
    if target != STDOUT:
        write_file(target, write, force)
        return
    stream = BytesIO()
    write(stream)
    with stdout_errors():
        sys.stdout.flush()
        sys.stdout.buffer.write(stream.getvalue())
        sys.stdout.buffer.flush()


def write_image(target: Path, image: Image.Image, force: bool = False) -> None:
    """`write_output` of a picture, in the format of the file's suffix; on standard output it is PNG."""
    suffix = ".png" if target == STDOUT else target.suffix
    write_output(target, partial(write_picture, image, suffix), force)


def or_list(words: Iterable[str]) -> str:
    """`.json or .npy`."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
