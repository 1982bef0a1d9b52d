"""From the items of pictures to a suite's scores with intervals over prompts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy import stats

from ...blocks.errors import BifronsError
from ..geneval.intervals import Interval
from .suite import Item

LEVEL = 0.95


@dataclass(frozen=True)
class GroupScore:
    """The mean of a group's items, 0 to 1, and its interval for new prompts of the same kind."""

    score: float
    interval: Interval
    items: int
    prompts: int


@dataclass(frozen=True)
class SuiteSummary:
    """A suite's scores. overall: None where a group with a weight has no items; `missing` names them."""

    overall: float | None
    interval: Interval | None
    groups: Mapping[str, GroupScore]
    missing: tuple[str, ...]
    pictures: int
    prompts: int


def summarize(
    weights_of: Callable[[Sequence[str]], dict[str, float]], items: Mapping[Any, Sequence[Sequence[Item]]]
) -> SuiteSummary:
    """Scores from the items of each picture of each prompt.

    weights_of: see `Suite.weights`. items: by prompt, whose pictures are drawn together.

    A group's score is the mean of its items, of all prompts together. Raises BifronsError without an item.
    """
    tables: dict[str, dict[Any, list[float]]] = {}
    for prompt, pictures in items.items():
        for item in (item for picture in pictures for item in picture):
            tables.setdefault(item.group, {}).setdefault(prompt, []).append(item.value)
    if not tables:
        raise BifronsError("there is no judged picture; accepted: at least one")
    groups, variances = {}, {}
    for name in sorted(tables):
        groups[name], variances[name] = _group(list(tables[name].values()))
    weights = weights_of(list(groups))
    missing = tuple(name for name in weights if name not in groups)
    overall = interval = None
    if not missing:
        overall = math.fsum(weight * groups[name].score for name, weight in weights.items())
        # The groups of a weighted sum share no prompt.
        variance = math.fsum(weight**2 * variances[name] for name, weight in weights.items())
        prompts = sum(groups[name].prompts for name in weights)
        interval = limits(overall, _effective(overall, variance, prompts))
        if len(weights) == 1:
            interval = groups[next(iter(weights))].interval
    pictures = sum(len(pictures) for pictures in items.values())
    return SuiteSummary(overall, interval, groups, missing, pictures, len(items))


def _group(values: Sequence[Sequence[float]]) -> tuple[GroupScore, float]:
    """The score of a group from the values of each of its prompts, and the score's variance.

    The variance is that of a ratio of sums over prompts (Cochran 1977, Sampling Techniques, 11.8).
    """
    sums, counts = np.array([sum(v) for v in values]), np.array([len(v) for v in values])
    score = float(sums.sum() / counts.sum())
    prompts, variance = len(values), 0.0
    if prompts > 1:
        residuals = sums - score * counts
        variance = float(prompts / (prompts - 1) * (residuals**2).sum() / counts.sum() ** 2)
    shrink = (_Z / float(stats.t.ppf(NormalDist().cdf(_Z), prompts - 1))) ** 2 if prompts > 1 else 1.0
    interval = limits(score, _effective(score, variance, prompts) * shrink)
    return GroupScore(min(1.0, score), interval, int(counts.sum()), prompts), variance


_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def _effective(score: float, variance: float, prompts: int) -> float:
    """How many independent 0s and 1s have this mean and variance; the prompts where that isn't known."""
    spread = score * (1 - score)
    return max(prompts, spread / variance) if spread > 0 and variance > 0 else prompts


def limits(score: float, n: float) -> Interval:
    """Limits of a mean seen in n trials, from Beta distributions between Jeffreys' and Clopper-Pearson's."""
    x, tail = min(1.0, score) * n, (1 - LEVEL) / 2
    low = float(stats.beta.ppf(tail, x + 0.25, n - x + 0.75))
    high = float(stats.beta.ppf(1 - tail, x + 0.75, n - x + 0.25))
    return Interval(min(low, score), max(high, min(1.0, score)))
