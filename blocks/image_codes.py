"""Codes of the image tokenizer as users give them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import OptionError


def check_codes(codes: Tensor | Sequence[int], size: int) -> Tensor:
    """Codes of any shape as int64. Raises `OptionError` unless they are whole numbers below `size`."""
    try:
        checked = torch.as_tensor(codes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"codes are no array of whole numbers: {error}") from error
    real = not checked.dtype.is_floating_point and not checked.is_meta
    if not real or checked.dtype.is_complex or checked.dtype == torch.bool:
        raise OptionError(f"codes are {checked.dtype} on {checked.device}; accepted: whole numbers")
    if checked.numel() == 0:
        raise OptionError("there are no codes; accepted: at least one")
    least, most = checked.min(), checked.max()
    if least < 0 or most >= size:
        raise OptionError(f"codes reach from {least} to {most}; accepted: 0 to {size - 1}")
    return checked.long()
