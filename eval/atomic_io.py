"""Files that appear whole or not at all, and what to say when the disk refuses."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..blocks.errors import BifronsError

_AGAIN = "what is finished is kept: free some space and run the same command again"
_WRITABLE = "accepted: a folder that can be written to"
_ADVICE = {
    errno.ENOSPC: f"the disk is full; {_AGAIN}",
    errno.EDQUOT: f"the quota is used up; {_AGAIN}",
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
        why = _ADVICE.get(error.errno or 0) or error.strerror or str(error)
        raise BifronsError(f"can't {action}: {why}") from error


def fresh_folder(path: Path) -> Path:
    """The folder, made with its parents where it is missing. Raises BifronsError where that fails."""
    with disk_errors(f"make the folder {path}"):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def whole_file(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """Write beside `path` and rename at the end; after an error nothing is left, and what was there stays.

    The temporary name starts with a dot, so that no pattern of the official layout matches it. `durable`
    waits until the data is on the disk. Raises BifronsError where writing fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(f"write {path}"):
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                if durable:
                    os.fsync(stream.fileno())
            os.replace(temporary, path)
    finally:
        _remove(temporary)
    if durable and hasattr(os, "O_DIRECTORY"):  # the rename is on the disk only once the folder is
        handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_whole(path: Path, content: bytes, durable: bool = True) -> None:
    """A whole file of these bytes; see `whole_file`."""
    with whole_file(path, durable) as stream:
        stream.write(content)


def write_json(path: Path, content: Any, durable: bool = True) -> None:
    """A whole file of indented JSON; see `whole_file`."""
    write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(), durable)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises BifronsError where it can't be read or is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise BifronsError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise BifronsError(f"{path} is not JSON: {error}") from error


def _remove(path: Path) -> None:
    """Best effort: after a failed write, the cause is what counts, not that its rest can't be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
