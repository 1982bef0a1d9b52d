"""What commands say on stderr beside errors: notes, warnings and progress, all of which `--quiet` drops."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..blocks.errors import printable

_NO_BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""Variables that end the progress bars of libraries, which read them when they are imported."""
_QUIET = {"TQDM_DISABLE": "1", **_NO_BARS}
"""The same for our own bars, also those of processes that are started."""
_quiet = False


def is_quiet() -> bool:
    """Whether notes and progress are dropped."""
    return _quiet


def note(text: str) -> None:
    """Print a line on stderr, unless quiet."""
    if not _quiet:
        print(printable(text), file=sys.stderr, flush=True)


def heading(word: str, color: int) -> str:
    """A word such as `error:` in an ANSI colour where stderr is a terminal and NO_COLOR is not set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stderr.isatty()
    return word if plain else f"\x1b[1;{color}m{word}\x1b[0m"


@contextmanager
def notes(quiet: bool) -> Iterator[None]:
    """Within it, warnings are one line on stderr, and libraries draw progress bars on terminals only; `quiet`
    drops warnings, notes and all progress."""
    global _quiet
    before, environment = _quiet, {name: os.environ.get(name) for name in _QUIET}

    def show(message: Any, *place: Any, **more: Any) -> None:
        print(f"{heading('warning:', 33)} {printable(str(message))}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        if quiet:
            _quiet = True
            warnings.simplefilter("ignore")
            os.environ.update(_QUIET)
        elif not (sys.stderr and sys.stderr.isatty()):
            os.environ.update(_NO_BARS)
        try:
            yield
        finally:
            _quiet = before
            for name, value in environment.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
