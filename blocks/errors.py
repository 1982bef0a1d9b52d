"""The exception tree. Every error that a user can cause is a `BifronsError`, which is a `ValueError`.

`check_number` and `check_integer` raise it for numbers out of range.
"""

import math
import re
import threading
from dataclasses import fields
from numbers import Real
from typing import Any

_UNPRINTABLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


class BifronsError(ValueError):
    """Invalid input from the caller; the message says what was wrong and what is accepted."""

    def __str__(self) -> str:
        return printable(super().__str__())


class CheckpointError(BifronsError):
    """A model folder is missing, damaged, unsafe, or does not hold what its config promises."""


class ConfigError(CheckpointError):
    """A `config.json` (or a tokenizer or processor file) is missing, unreadable or of an unknown kind."""


class PictureError(BifronsError):
    """A picture can't be read or is outside the limits."""


class PromptError(BifronsError):
    """A prompt, a message or a conversation is malformed, empty or too long for the context."""


class OptionError(BifronsError):
    """An option has a value outside its range, or one that this model can't honour."""


class ResourceError(OptionError):
    """There is too little memory, or a file can't be read or written: the same call may succeed elsewhere."""


class UnknownWordsWarning(UserWarning):
    """A text has words that a small model, such as `janus-nano`, was not trained on."""


def printable(text: str) -> str:
    """A text that is safe to print to a terminal: control characters (but for tabs and line breaks), marks
    that change the direction of writing and lone surrogates as JSON escapes, such as `\\u001b`."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """A `printable` text in which tabs and line breaks are escaped too: for names from outside."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def is_name(text: object, longest: int = 1000) -> bool:
    """Whether this is a text of one line, at most `longest` characters, that is safe to print."""
    return isinstance(text, str) and len(text) <= longest and text == one_line(text)


def python_number(value: Any) -> Any:
    """The Python number in a numpy scalar, an array or a tensor of one number without axes; any other value
    is returned as it is."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else value


def as_python_numbers(options: Any) -> None:
    """Replace the numbers in the fields of a dataclass, frozen or not, by `python_number` of them."""
    for field in fields(options):
        object.__setattr__(options, field.name, python_number(getattr(options, field.name)))


def check_number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` if it is a finite number in [low, high]; otherwise raises an `OptionError` with the range.

    Numbers of numpy and torch are numbers, too; booleans are not.
    """
    number = python_number(value)
    if isinstance(number, bool) or not isinstance(number, Real) or not _is_finite(number):
        raise OptionError(f"{name} is {shown(number)}; accepted: a finite number")
    if not low <= float(number) <= high:
        bounds = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
        raise OptionError(f"{name} is {shown(number)}; accepted: {bounds}")
    return float(number)


def _is_finite(number: Real) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond all floats
        return False


def check_integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """`value` if it is a whole number in [low, high]; otherwise raises an `OptionError` with the range.

    Whole numbers of numpy and torch are accepted, too; booleans and floats are not.
    """
    number = python_number(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise OptionError(f"{name} is {shown(number)}; accepted: a whole number")
    if number < low or (high is not None and number > high):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        raise OptionError(f"{name} is {shown(number)}; accepted: {bounds}")
    return number


def shown(value: object, longest: int = 200) -> str:
    """`repr` of a value for an error, cut to a bearable length."""
    if isinstance(value, str | bytes) and len(value) > longest:
        unit = "characters" if isinstance(value, str) else "bytes"
        return f"{value[:longest]!r}... ({len(value):,} {unit})"  # the `repr` of all might be large
    try:
        text = repr(value)
    except ValueError:  # of a whole number with thousands of digits
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text):,} characters)"


def counted(number: int, noun: str) -> str:
    """A number of things whose plural ends in `s`: `1 picture`, `2,212 pictures`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def reraise_exit(error: BaseException) -> None:
    """Raise `error` again if it is to end the process: a KeyboardInterrupt or SystemExit in the main thread,
    where the handlers of signals run.

    For code that catches `BaseException`, since libraries in Rust raise a `PanicException`, which is no
    `Exception`.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
