"""Work that takes long and keeps what is done: Ctrl-C, SIGTERM or an error lose only what is in work."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ...blocks.errors import BifronsError, OptionError, PromptError, ResourceError

INTERRUPTED = 130
"""The exit status after Ctrl-C: 128 + SIGINT."""
FAILED, REFUSED = 1, 2
"""The exit status of work that failed, and of a command line that is refused."""


def status_of(error: BifronsError) -> int:
    """`REFUSED` for what stands on the command line; `FAILED` for files, models and the machine."""
    typed = isinstance(error, OptionError | PromptError) and not isinstance(error, ResourceError)
    return REFUSED if typed else FAILED


class StoppedError(Exception):
    """Work that ended early. `status` is the exit status; `content` is what `--json` prints beside the
    message."""

    def __init__(self, message: str, status: int, content: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.content = status, content or {}


class _TerminatedError(BaseException):
    """A signal that ends the process; like KeyboardInterrupt, no `Exception`."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def long_work(done: Callable[[], str], content: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Turn the end of unfinished work into a `StoppedError` that says what is `done`, if anything is.

    SIGTERM and SIGHUP (a closed terminal) end the work as Ctrl-C does, unless they are ignored (`nohup`), so
    that temporary files are removed.
    """

    def said(end: str) -> str:
        return "; ".join(filter(None, (end, done())))

    with _signals_raise():
        try:
            yield
        except KeyboardInterrupt as error:
            raise StoppedError(said("interrupted"), INTERRUPTED, content()) from error
        except _TerminatedError as error:
            raise StoppedError(said("terminated"), 128 + error.number, content()) from error
        except BifronsError as error:
            raise StoppedError(said(str(error)), status_of(error), content()) from error


@contextmanager
def _signals_raise() -> Iterator[None]:
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # only there handlers may be set
        names = []
    kinds = [
        kind for kind in (getattr(signal, name) for name in names) if signal.getsignal(kind) is signal.SIG_DFL
    ]
    for kind in kinds:
        signal.signal(kind, _terminate)
    try:
        yield
    finally:
        for kind in kinds:
            signal.signal(kind, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _TerminatedError(number)
