"""OpenCV, from the `eval` extra, is imported only where it is needed; transformers is kept quiet."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..blocks.errors import BifronsError


def import_opencv() -> Any:
    """The module `cv2`. Raises BifronsError with the command that installs it."""
    try:
        import cv2
    except ImportError as error:
        raise BifronsError(
            "the Mask2Former detectors need the package opencv-python-headless: pip install 'bifrons[eval]'"
        ) from error
    return cv2


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
