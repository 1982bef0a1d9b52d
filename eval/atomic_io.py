"""Reading and writing an evaluation's files, with errors that say what to do when the disk refuses.

What is read is bounded, and comes from regular files only.
"""

import errno
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..blocks.errors import BifronsError
from ..blocks.files import atomic_write, open_regular, read_bounded
from ..blocks.json_config import TABLE_BYTES, decode_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LINE_BYTES = 16 << 20
"""Longest line that is read: a row of a thousand boxes has about 0.1 MB."""

_RESUME = "what is finished is kept: free some space and run the same command again"
_WRITABLE = "accepted: a folder that can be written to"
_ADVICE = {
    errno.ENOSPC: f"the disk is full; {_RESUME}",
    errno.EDQUOT: f"the quota is used up; {_RESUME}",
    errno.EROFS: f"the file system is read-only; {_WRITABLE}",
    errno.EACCES: f"permission denied; {_WRITABLE}",
    errno.EPERM: f"permission denied; {_WRITABLE}",
}


@contextmanager
def disk_errors(action: str) -> Iterator[None]:
    """Turn an OSError within into a BifronsError that begins "can't ACTION" and says what to do."""
    try:
        yield
    except OSError as error:
        reason = _ADVICE.get(error.errno or 0) or error.strerror or str(error)
        raise BifronsError(f"can't {action}: {reason}") from error


def make_folder(path: Path) -> Path:
    """The folder, created with its parents if needed. Raises BifronsError where that fails."""
    with disk_errors(f"make the folder {path}"):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def folder_lock(path: Path, shared: bool = False) -> Iterator[None]:
    """Hold a folder for this process, or with `shared` for those that share it. It leaves no file behind and
    ends with the process. Does nothing where the system or the file system has no such locks.

    Raises BifronsError where another process holds the folder.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BifronsError(
            f"another process works in {path}; accepted: wait until it has ended, or take another folder"
        ) from error
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """`atomic_write`, with a BifronsError where writing fails. The temporary file is hidden, so that no
    pattern of GenEval's layout matches it."""
    with disk_errors(f"write {path}"), atomic_write(path, durable) as stream:
        yield stream


def write_file(path: Path, content: bytes, durable: bool = True) -> None:
    """Write these bytes atomically; see `atomic_file`."""
    with atomic_file(path, durable) as stream:
        stream.write(content)


def write_json(path: Path, content: Any, durable: bool = True) -> None:
    """Write indented JSON atomically; see `atomic_file`."""
    write_file(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(), durable)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises BifronsError where it can't be read or isn't JSON."""
    content = read_file(path)
    try:
        return decode_json(content)
    except ValueError as error:
        raise BifronsError(f"{path} is not JSON: {error}") from error


def write_recipe(path: Path, recipe: Mapping[str, Any], command: str, free: Sequence[str]) -> None:
    """Write what a run of `command` in the file's folder is made from, or check that the file says the same
    but for the `free` entries. Raises BifronsError, also for a folder that holds something else."""
    root = path.parent
    if os.path.isfile(path):
        old = read_json(path)
        fixed = [name for name in recipe if name not in free]
        odd = [name for name in fixed if not isinstance(old, dict) or old.get(name) != recipe[name]]
        if odd:
            raise BifronsError(
                f"{root} is a run with another {', '.join(odd)}; accepted: the same, or another folder"
            )
    elif any(not path.name.endswith(".part") for path in root.iterdir()):
        raise BifronsError(f"{root} holds something else than a run of `{command}`; take another folder")
    write_json(path, recipe)


def read_file(path: Path) -> bytes:
    """The content of a file of at most `TABLE_BYTES`. Raises BifronsError where it can't be read."""
    try:
        return read_bounded(path, TABLE_BYTES)
    except OSError as error:
        raise BifronsError(f"{path} can't be read: {error.strerror or error}") from error


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, from 1; a name that ends in `.gz` is decompressed.

    Raises BifronsError where it can't be read, or for a line of over `LINE_BYTES`.
    """
    number = 0
    try:
        with open_regular(path) as raw, io.BufferedReader(raw) as buffered:
            stream = gzip.GzipFile(fileobj=buffered) if path.suffix == ".gz" else buffered
            while line := stream.readline(LINE_BYTES + 1):
                number += 1
                if len(line) > LINE_BYTES:
                    raise BifronsError(f"{path} line {number} has more than {LINE_BYTES:,} bytes")
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        place = f" after line {number}" if number else ""
        raise BifronsError(f"{path} can't be read{place}: {reason}") from error
