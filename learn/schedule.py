"""How far a run is, by steps or by the clock, and its learning rate."""

import math
import time
from dataclasses import dataclass, field


def rate_at(progress: float, peak: float, warmup: float, decay_from: float) -> float:
    """The learning rate at a `progress` from 0 to 1: it rises to `peak` over the share `warmup`, stays there
    until `decay_from`, below 1, and falls to zero as a cosine."""
    if progress < warmup:
        return peak * progress / warmup
    if progress < decay_from:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - decay_from) / (1 - decay_from)))


@dataclass
class Clock:
    """Seconds of training, summed over restarts: `spent` before this one."""

    spent: float = 0.0
    started: float = field(default_factory=lambda: time.monotonic())

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return self.spent + time.monotonic() - self.started

    def start(self, spent: float | None = None) -> None:
        """Count from now on, after `spent` seconds; by default those that were counted."""
        self.spent = self.elapsed if spent is None else spent
        self.started = time.monotonic()

    def leave_out(self, seconds: float) -> None:
        """Don't count the last so many seconds."""
        self.started += seconds
