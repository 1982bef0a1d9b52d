"""Progress of long work on stderr."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..blocks.errors import counted
from ..blocks.progress import progress_bar

Advance = Callable[[int], Any]

_LINE_SECONDS = 60.0
"""Time between two lines of progress where stderr is no terminal."""


@contextmanager
def work_progress(what: str, images: int, unit: str) -> Iterator[Advance]:
    """A bar over `images` (units) on terminals; a line a minute elsewhere, unless bars are turned off."""
    done, shown = 0, time.monotonic()
    with progress_bar(images, what, f" {unit}s") as bar:

        def advance(number: int) -> None:
            nonlocal done, shown
            done += number
            bar.update(number)
            if bar.disable and "TQDM_DISABLE" not in os.environ and time.monotonic() > shown + _LINE_SECONDS:
                print(f"{what}: {done:,} of {counted(images, unit)}", file=sys.stderr, flush=True)
                shown = time.monotonic()

        yield advance
