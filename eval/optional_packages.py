"""Packages of the `eval` extra, imported only where they are needed."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..blocks.errors import BifronsError


def import_transformers() -> Any:
    """The module `transformers`. Raises BifronsError with the command that installs it."""
    return _import("transformers", "transformers, 5 or newer")


def import_opencv() -> Any:
    """The module `cv2`. Raises BifronsError with the command that installs it."""
    return _import("cv2", "opencv-python-headless")


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BifronsError(
            f"the Mask2Former detectors need the package {package}: pip install 'bifrons[eval]'"
        ) from error


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """No progress bars, and no warnings about missing or unexpected tensors, which callers check."""
    logging = transformers.utils.logging
    level, progress_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if progress_bars:
            logging.enable_progress_bar()
