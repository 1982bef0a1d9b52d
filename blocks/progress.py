"""Progress bars on stderr: on terminals and in notebooks, not in files and pipes."""

import os
import sys
from importlib.util import find_spec
from typing import Any

from tqdm import tqdm


def progress_bar(total: int, what: str, unit: str, show: bool | None = None, **options: Any) -> tqdm:
    """A bar that counts to `total` units; `options` are those of tqdm.

    show: None for terminals and notebooks only, unless TQDM_DISABLE is set; True also elsewhere.
    """
    if show is None:
        show = (_is_terminal(sys.stderr) or _in_notebook()) and not os.environ.get("TQDM_DISABLE")
    kind = _bar_class() if show else tqdm
    return kind(total=total, desc=what, unit=unit, file=sys.stderr, disable=not show, **options)


def byte_bar(total: int, what: str, show: bool | None = None) -> tqdm:
    """A bar that counts bytes, shown after half a second; redrawn once a second where it goes to a file."""
    interval = 0.1 if _is_terminal(sys.stderr) else 1.0
    return progress_bar(total, what, "B", show, unit_scale=True, delay=0.5, mininterval=interval)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


def _in_notebook() -> bool:
    """Whether this runs in a kernel of Jupyter, whose stderr is no terminal but shows a bar."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _bar_class() -> Any:
    if _in_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as notebook_bar

        return notebook_bar
    return tqdm
