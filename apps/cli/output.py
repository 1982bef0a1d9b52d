"""Standard output that may fail: a full disk, a closed pipe, or none at all."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class OutputError(Exception):
    """Standard output can't be written; it is told apart from other files, whose errors are `OSError`s."""


@contextmanager
def stdout_errors() -> Iterator[None]:
    """What standard output refuses within becomes an `OutputError`; a closed pipe stays what it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.strerror or str(error)) from error


class _Stdout(io.TextIOWrapper):
    """Raises `OutputError` for any failure but a closed pipe."""

    def write(self, text: str) -> int:
        with stdout_errors():
            return super().write(text)

    def flush(self) -> None:
        with stdout_errors():
            super().flush()


class _Stderr(io.TextIOWrapper):
    """Drops what can't be written: there is nobody left to tell, and the exit status says the rest."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def prepare_streams() -> None:
    """Make standard output raise `OutputError`, and escape characters that an encoding lacks."""
    for name, kind in (("stdout", _Stdout), ("stderr", _Stderr)):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        if type(stream) is io.TextIOWrapper:
            lines, through = stream.line_buffering, stream.write_through
            setattr(sys, name, kind(stream.buffer, stream.encoding, stream.errors, None, lines, through))


def discard_output() -> None:
    """Write what is still buffered nowhere: it would fail again when the interpreter closes stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
