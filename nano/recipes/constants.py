"""Constants as tensors that stay on their device: a step that is captured may copy nothing from the host."""

from functools import lru_cache

import torch
from torch import Tensor

Numbers = tuple[float, ...] | tuple[tuple[float, ...], ...]


@lru_cache(maxsize=64)
def _kept(values: Numbers, device: str) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def constant(values: Numbers, device: str | torch.device) -> Tensor:
    """`values` as float32, copied to the device at the first call only; not to be written to."""
    return _kept(values, str(device))
