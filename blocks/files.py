"""Reading regular files only, with a bound; texts in any Unicode encoding; and atomic writes: files appear
complete or not at all."""

import codecs
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO

HEAD_BYTES = 512
"""As much of a file as `describe_content` looks at."""
_FOREIGN = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"),
    (
        rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body|\?xml|!--)",
        "a saved web page, not the file itself; download the file (the page has a link for it)",
    ),
    (rb"GGUF", "a GGUF file; take the plain folder of the model, with --quantize int4"),
)


def describe_content(head: bytes) -> str | None:
    """What a file that begins with these bytes is, and what to do; None if it isn't known to be foreign."""
    found = (text for pattern, text in _FOREIGN if re.match(pattern, head[:HEAD_BYTES], re.IGNORECASE))
    return next(found, None)


def open_regular(path: str | os.PathLike[str]) -> FileIO:
    """Open a regular file for reading, unbuffered. Never waits for a pipe's other end.

    Raises `OSError`, with a `strerror`, for anything else (pipes, devices, sockets, folders) and for names
    that no file can have.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError as error:  # a NUL byte
        raise OSError(errno.EINVAL, "no file can have this name", os.fspath(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    return os.fdopen(descriptor, "rb", buffering=0)


def read_bounded(path: str | os.PathLike[str], limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises `OSError`, as `open_regular` does."""
    with open_regular(path) as stream:
        size = min(os.fstat(stream.fileno()).st_size, limit)
        parts = [stream.read(size + 1)]
        while parts[-1] and sum(map(len, parts)) <= limit:
            parts.append(stream.read(limit + 1))
    content = b"".join(parts)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than the accepted {limit:,} bytes", os.fspath(path))
    return content


_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(beginning: bytes) -> str | None:
    """The encoding that the first four bytes of a text tell, by a byte order mark or the NUL bytes of UTF-16
    beside its first two characters."""
    for mark, name in _MARKS:
        if beginning.startswith(mark):
            return name
    zeros = [byte == 0 for byte in beginning[:4]]
    return {(False, True) * 2: "utf-16-le", (True, False) * 2: "utf-16-be"}.get(tuple(zeros))


def decode_text(content: bytes) -> str:
    """A text that a person or a shell wrote: in UTF-8 or what `encoding_of` says, without a byte order mark.

    PowerShell's `>` writes UTF-16. Raises `ValueError`, with the line, for anything else.
    """
    encoding = encoding_of(content[:4]) or "utf-8"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if not encoding.startswith("utf-8"):
            raise ValueError(f"it is not valid {encoding.upper()}: {error.reason}") from error
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line} is not UTF-8 (the byte 0x{content[error.start]:02x}); save the file as UTF-8"
        ) from error


@contextmanager
def temporary_path(final: Path) -> Iterator[Path]:
    """A hidden path beside `final`, for a file or folder that is to be renamed to `final` once complete.

    Whatever is left at that path is removed on exit, also after an error. Removal is best effort: its failure
    must not hide the original error.
    """
    temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        yield temporary
    finally:
        with suppress(OSError):
            if temporary.is_dir():
                shutil.rmtree(temporary)
            else:
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Write to a temporary file that replaces `path` at the end; after an error `path` is unchanged.

    `durable` waits until data and name are on the disk. Raises `OSError` if writing fails.
    """
    with temporary_path(path) as temporary:
        with temporary.open("wb") as stream:
            yield stream
            if durable:
                sync(stream)
        os.replace(temporary, path)
    if durable and hasattr(os, "O_DIRECTORY"):  # a rename is on the disk once its folder is
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sync(stream: BinaryIO) -> None:
    """Wait until everything written to `stream` is on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def rename_new(source: Path, target: Path) -> None:
    """Rename a file to a new name. Raises `FileExistsError` if the name is taken."""
    try:
        os.link(source, target)  # unlike a rename, this fails if the name exists
    except FileExistsError:
        raise
    except OSError as error:  # a file system without hard links
        if target.exists():
            raise FileExistsError(f"{target} exists") from error
        source.rename(target)
    else:
        source.unlink()
