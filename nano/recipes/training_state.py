"""What the recipes share: a clock-bound schedule, an average of the weights, saved states and constants."""

import copy
import math
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ...blocks.files import atomic_write

M = TypeVar("M", bound=nn.Module)
Numbers = tuple[float, ...] | tuple[tuple[float, ...], ...]


@dataclass
class Clock:
    """Training by the clock: progress runs from 0 to 1 over `seconds`, summed over restarts."""

    seconds: float
    spent: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        return self.spent + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        return min(1.0, self.elapsed / self.seconds)

    def learning_rate(self, peak: float, warmup: float = 0.02, decay_from: float = 0.4) -> float:
        """Linear warm-up, a plateau, then a cosine to zero."""
        at = self.progress
        if at < warmup:
            return peak * at / warmup
        if at < decay_from:
            return peak
        return peak * 0.5 * (1 + math.cos(math.pi * (at - decay_from) / (1 - decay_from)))


class Average(Generic[M]):
    """Exponential moving average of a model's weights, which is what gets exported."""

    def __init__(self, model: M, decay: float = 0.999) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        # A tensor, so that a captured step reads its current value.
        self.weight = torch.ones((), device=next(model.parameters()).device)

    def age(self, step: int) -> None:
        """Set how much the next update counts: more in early steps, so that the average forgets its start."""
        self.weight.fill_(1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights."""
        averages: list[Tensor] = list(self.model.parameters())
        weights: list[Tensor] = list(model.parameters())
        change = list(torch._foreach_sub(weights, averages))
        torch._foreach_mul_(change, self.weight)
        torch._foreach_add_(averages, change)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a resumable state; the old one stays whole until the new one is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, durable=False) as stream:
        torch.save(state, stream)


def load_state(path: Path, device: str | torch.device) -> dict[str, Any] | None:
    """The saved state, or None where there is none."""
    return torch.load(path, map_location=device, weights_only=True) if path.exists() else None


@lru_cache(maxsize=64)
def _constant(values: Numbers, device: str) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def constant(values: Numbers, device: str | torch.device) -> Tensor:
    """`values` as float32 on a device; not to be written to. Copied there at the first call only: a captured
    step may copy nothing from the host."""
    return _constant(values, str(device))
