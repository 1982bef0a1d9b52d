"""Biases that callers give to single tokens."""

from collections.abc import Mapping

from .errors import OptionError, check_integer, check_number, shown

MAX_BIASES = 1024
"""Most entries of a `logit_bias`."""


def check_logit_bias(biases: object, vocabulary: int | None = None) -> dict[int, float] | None:
    """Biases of -100 to 100 by token id, checked; None for none. Raises `OptionError`."""
    if biases is None:
        return None
    if not isinstance(biases, Mapping) or len(biases) > MAX_BIASES:
        raise OptionError(f"logit_bias is {shown(biases)}; accepted: up to {MAX_BIASES} biases by token id")
    last = None if vocabulary is None else vocabulary - 1
    return {
        check_integer("a token id in logit_bias", token, 0, last): check_number("logit_bias", bias, -100, 100)
        for token, bias in biases.items()
    }
