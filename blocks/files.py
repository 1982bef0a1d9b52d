"""Atomic file writes: files appear complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


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
