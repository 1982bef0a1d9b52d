"""Guidance and sampling: pure functions of logits `[..., V]`, each row with options of its own.

B rows, V vocabulary (text tokens, or codes of the image codebook).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import OptionError
from .philox import exponential_noise


@dataclass(frozen=True)
class Sampling:
    """How to choose a token. `temperature=0` is greedy; `top_k=0` and `top_p=1` keep everything."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, low=0.0)
        check_number("top_p", self.top_p, low=0.0, high=1.0)
        if self.top_p == 0.0:
            raise OptionError("top_p is 0, which keeps no token; accepted: above 0 and up to 1 (1 keeps all)")
        check_integer("top_k", self.top_k, low=0)


def check_number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high], or an `OptionError` that says the range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise OptionError(f"{name} is {value!r}; accepted: a finite number")
    if not low <= value <= high:
        bounds = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
        raise OptionError(f"{name} is {value!r}; accepted: {bounds}")
    return float(value)


def check_integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """A whole number in [low, high], or an `OptionError` that says the range."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(f"{name} is {value!r}; accepted: a whole number")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        raise OptionError(f"{name} is {value}; accepted: {bounds}")
    return value


def guide(cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance on logits: `u + scale * (c - u)`.

    Ho and Salimans 2022, eq. 6, with scale = 1 + w there; Janus (Wu et al. 2024) uses it with scale 5.
    """
    return uncond + scale * (cond - uncond)


def penalize(logits: Tensor, seen: Tensor, penalty: float | Tensor) -> Tensor:
    """Make tokens that were `seen` (a mask of the logits' shape) less likely: divide positive logits by the
    penalty, multiply negative ones (Keskar et al. 2019, "CTRL", sec. 4.1, as transformers completes it)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Set all but the `top_k` largest logits to -inf (ties with the last one stay); 0 keeps all."""
    if top_k == 0 or top_k >= logits.shape[-1]:
        return logits
    least = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -math.inf)


def keep_top_p(logits: Tensor, top_p: float | Tensor) -> Tensor:
    """Keep the fewest most likely tokens that reach probability `top_p` (Holtzman et al. 2020, sec. 3.1)."""
    if not isinstance(top_p, Tensor) and top_p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logits.masked_fill(drop, -math.inf)


def narrow(logits: Tensor, temperature: float | Tensor, top_k: int, top_p: float | Tensor) -> Tensor:
    """Filters come after the temperature, top_k before top_p."""
    return keep_top_p(keep_top_k(logits / temperature, top_k), top_p)


def sample(logits_BV: Tensor, sampling: Sampling, seeds_B: Tensor, steps_B: Tensor) -> Tensor:
    """Choose one token a row, int64 `[B]`. Deterministic: row b depends on its logits, seed and step.

    The draw is an exponential race, argmin(E_i / p_i), which chooses i with probability p_i. Done in
    float32 whatever the logits' dtype is.
    """
    logits = logits_BV.float()
    if sampling.temperature == 0.0:
        return logits.argmax(-1)
    return race(narrow(logits, sampling.temperature, sampling.top_k, sampling.top_p), seeds_B, steps_B)


def race(logits_BV: Tensor, seeds_B: Tensor, steps_B: Tensor) -> Tensor:
    """The draw alone: of float32 logits after temperature and filters."""
    noise = exponential_noise(seeds_B, steps_B, logits_BV.shape[-1])
    return (logits_BV - noise.log()).argmax(-1)
