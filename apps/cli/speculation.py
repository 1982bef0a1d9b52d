"""`--speculate`; imports nothing heavy."""

import argparse
from typing import Any

from ...blocks.speculate import MAX_WINDOW, Speculate, check_speculate


def add_speculate(parser: Any) -> None:
    """Add `--speculate`."""
    parser.add_argument(
        "--speculate",
        type=_speculate,
        default=argparse.SUPPRESS,
        metavar="N",
        help="tokens that a step may check: 2 to 64, off, or auto, as many as are faster (default: auto); no "
        "result depends on it",
    )


def _speculate(text: str) -> Speculate:
    if text in ("auto", "off"):
        return "auto" if text == "auto" else False
    try:
        return check_speculate(int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: auto, off, or 2 to {MAX_WINDOW}") from None
