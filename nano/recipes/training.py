"""What the recipes share: a clock-bound schedule, an average of the weights, and a state that survives."""

import copy
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


@dataclass
class Clock:
    """Training by the clock: progress runs from 0 to 1 over `seconds`, over all restarts together."""

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
        # A tensor, so that a captured step reads its value of the day.
        self.weight = torch.ones((), device=next(model.parameters()).device)

    def age(self, step: int) -> None:
        """Set how much the next update counts; early on the average is young and forgets its start faster."""
        self.weight.fill_(1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        ours: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = list(model.parameters())
        change = list(torch._foreach_sub(theirs, ours))
        torch._foreach_mul_(change, self.weight)
        torch._foreach_add_(ours, change)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a resumable state; the old one stays whole until the new one is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path, device: str | torch.device) -> dict[str, Any] | None:
    return torch.load(path, map_location=device, weights_only=True) if path.exists() else None
