"""The option of how many tokens a step may check (see `drafts.py`); imports nothing heavy."""

from typing import Any, Literal

from .errors import OptionError, python_number, shown

MAX_WINDOW = 64
"""Most tokens that a step may check."""
Speculate = Literal["auto", False] | int
"""How many tokens a step may check: `auto` picks the number, one where drafts would cost; False is one."""


def check_speculate(speculate: Any) -> Speculate:
    """The option, checked. Raises `OptionError`."""
    number = python_number(speculate)
    if number is False or (isinstance(number, str) and number == "auto"):
        return number
    if isinstance(number, bool) or not isinstance(number, int) or not 2 <= number <= MAX_WINDOW:
        accepted = f"'auto', False, or 2 to {MAX_WINDOW} tokens that a step may check"
        raise OptionError(f"speculate is {shown(speculate)}; accepted: {accepted}")
    return number
