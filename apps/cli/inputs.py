"""What users name on the command line: files, standard input as `-`, pictures, folders and globs."""

import glob
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from PIL import Image

from ...blocks.errors import BifronsError, OptionError, PictureError, PromptError
from ...blocks.files import decode_text, read_bounded
from ...blocks.image_io import FORMATS, open_image
from ...blocks.image_source import MAX_FILE
from ...blocks.json_config import decode_json
from .file_kinds import PICTURE, file_head, other_kind

Read = TypeVar("Read")
STDIN = "-"
_TEXT_BYTES = 1_000_000
_PIPES = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""Names of open pipes, such as those of a shell's `<(...)`."""


def user_path(text: str) -> Path:
    """A path with `~` expanded, which shells leave as it is within quotes and behind `=`."""
    return Path(os.path.expanduser(text))


def read_input(source: str, limit: int) -> bytes:
    """The content of a file, of a pipe that the shell opened, or for `-` of standard input.

    Raises `OSError`, with a `strerror`, where it can't be read or has more than `limit` bytes.
    """
    if source == STDIN:
        return _read_stream(_stdin(), source, limit)
    if source.startswith(_PIPES):
        with open(source, "rb") as stream:
            return _read_stream(stream, source, limit)
    return read_bounded(user_path(source), limit)


def is_stream(source: str) -> bool:
    """Whether this names standard input or a pipe that the shell opened."""
    return source == STDIN or source.startswith(_PIPES)


def _stdin() -> BinaryIO:
    if sys.stdin is None or sys.stdin.isatty():
        raise OptionError(
            "- reads standard input, which is no pipe and no file; accepted: COMMAND | bifrons ..."
        )
    return sys.stdin.buffer


def _read_stream(stream: BinaryIO, source: str, limit: int) -> bytes:
    content = stream.read(limit + 1)
    if len(content) > limit:
        raise OSError(None, f"it has more than the accepted {limit:,} bytes", source)
    return content


def read_user_text(source: str, limit: int) -> str:
    """`read_input` as text: see `decode_text`. Raises `OSError` and `ValueError`."""
    return decode_text(read_input(source, limit))


def stdin_text(what: str) -> str:
    """The text on standard input, for a `-` in the place of `what`, without space around it. Raises
    `PromptError`."""
    return whole_text(STDIN, what).strip()


def whole_text(source: str, what: str) -> str:
    """The text of a file, or of standard input for `-`, in the place of `what`: as it is but for the line
    break at its end. Raises `PromptError`."""
    name = "standard input" if source == STDIN else source
    try:
        text = read_user_text(source, _TEXT_BYTES)
    except UnicodeError as error:
        raise PromptError(f"{source} is {what}, but {name} is no text: {reason_of(error)}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, BifronsError):
            raise
        raise PromptError(f"{source} is {what}, but {name} can't be read: {reason_of(error)}") from error
    if not text.strip() or "\0" in text:
        held = "no text" if text.strip() else "nothing"
        raise PromptError(f"{source} is {what}, but {name} holds {held}")
    return text.removesuffix("\n").removesuffix("\r")


def decode_user_json(content: bytes) -> object:
    """The value of a JSON text in any Unicode encoding. Raises `ValueError`."""
    return decode_json(decode_text(content).encode())


def reason_of(error: OSError | ValueError) -> str:
    """Why a file couldn't be read, without its name."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def open_picture(source: str, exif: str = "apply") -> Image.Image:
    """The picture of a path, a file:// URL, a data: URL, or for `-` standard input; `exif` is that of
    `open_image`. Raises `PictureError`."""
    return read_picture(source, partial(open_image, exif=exif))


def read_picture(source: str, read: Callable[[str | bytes], Read]) -> Read:
    """What `read` makes of a picture's path or URL, or of the content of standard input. Raises
    `PictureError`, which says so of a file that is of another known kind."""
    content = b""
    try:
        if not is_stream(source):
            return read(local_path(source))
        content = read_input(source, MAX_FILE)
        return read(content)
    except PictureError as error:
        if problem := other_kind(source, content or file_head(local_path(source)), PICTURE):
            raise PictureError(problem) from error
        raise
    except OSError as error:
        raise PictureError(f"{source} can't be read as a picture: {reason_of(error)}") from error


def local_path(word: str) -> str:
    """The path of a file:// URL, as terminals paste it, and `~` expanded; anything else as it is."""
    if word[:7].lower() != "file://":
        return os.path.expanduser(word)
    parts = urlsplit(word)
    if parts.netloc not in ("", "localhost"):
        raise PictureError(f"{word!r} is on another machine; accepted: a path or file:///PATH")
    return url2pathname(parts.path) if os.name == "nt" else unquote(parts.path)


def picture_files(words: Iterable[str]) -> list[str]:
    """The picture files that words name, each once: a file, a folder (the pictures in it) or a glob.

    Raises `PictureError` for a word that names nothing.
    """
    return list(dict.fromkeys(path for word in words for path in _expand(word)))


def expand_globs(words: Iterable[str]) -> list[str]:
    """Words with the matches of globs in their places, as shells other than those of Windows do it.

    Raises `PictureError` for a glob that matches nothing.
    """
    return [path for word in words for path in (_expand(word) if _is_glob(local_path(word)) else [word])]


def _is_glob(path: str) -> bool:
    return glob.has_magic(path) and not os.path.lexists(path) and path[:5].lower() != "data:"


def _expand(word: str) -> Iterator[str]:
    path = local_path(word)
    if os.path.isdir(path):
        suffixes = picture_suffixes()
        names = [n for n in sorted(os.listdir(path)) if n[0] != "." and n.lower().endswith(suffixes)]
        if not names:
            raise PictureError(f"{word!r} is a folder without pictures; accepted: {', '.join(suffixes)}")
        yield from (os.path.join(path, name) for name in names)
    elif _is_glob(path):
        found = sorted(name for name in glob.iglob(path, recursive=True) if not os.path.isdir(name))
        if not found:
            raise PictureError(f"no file matches {word!r}")
        yield from found
    else:
        yield path


def picture_suffixes() -> tuple[str, ...]:
    """The suffixes of files in the accepted formats, in lower case."""
    Image.init()
    return tuple(sorted(suffix for suffix, name in Image.EXTENSION.items() if name in FORMATS))


def picture_words(text: str) -> list[str]:
    """The paths in what follows `/image`: a path with spaces as it is, if there is such a file, else words as
    a shell reads them, with quotes and backslashes. Raises `PictureError`."""
    whole = local_path(text)
    if os.path.lexists(whole) or text[:5].lower() == "data:":
        return [text]
    windows = os.name == "nt"  # there a backslash is part of a path
    try:
        words = shlex.split(text, posix=not windows)
    except ValueError as error:
        raise PictureError(f"{text!r}: {error}; accepted: paths, those with spaces within quotes") from error
    return [word.strip("\"'") for word in words] if windows else words


def dropped_files(line: str) -> list[str]:
    """The files of a line that consists of absolute paths only, as terminals paste what is dragged into them.

    Empty for any other line.
    """
    if not re.match(r"""["']?(/|~/|file://|[A-Za-z]:\\)""", line):
        return []
    with suppress(PictureError, ValueError):
        words = picture_words(line)
        if all(os.path.isfile(local_path(word)) for word in words):
            return words
    return []
