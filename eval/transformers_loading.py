"""The optional package transformers: found or asked for, and loading from it without its chatter."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..blocks.errors import BifronsError


def import_transformers() -> Any:
    """The module. Raises BifronsError with the command that installs it."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise BifronsError(
            "the Mask2Former detectors need the package transformers, 5 or newer: pip install 'bifrons[eval]'"
        ) from error


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no warnings about tensors: the caller checks those itself."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
