"""From the items of pictures to a suite's scores with intervals over prompts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from ...blocks.errors import BifronsError
from ..geneval.intervals import Interval, limits
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
    groups, spans = {}, {}
    for name in sorted(tables):
        groups[name], spans[name] = _group(list(tables[name].values()))
    weights = weights_of(list(groups))
    missing = tuple(name for name in weights if name not in groups)
    overall = interval = None
    if len(weights) == 1 and not missing:
        (only,) = weights
        overall, interval = groups[only].score, groups[only].interval
    elif not missing:
        # The groups of a weighted sum share no prompt: Zou and Donner's MOVER (2008, Statistics in Medicine
        # 27:1693), as for GenEval's kinds.
        overall = math.fsum(weight * groups[name].score for name, weight in weights.items())
        below = [weight * (groups[name].score - spans[name].low) for name, weight in weights.items()]
        above = [weight * (spans[name].high - groups[name].score) for name, weight in weights.items()]
        interval = Interval(max(0.0, overall - math.hypot(*below)), min(1.0, overall + math.hypot(*above)))
    pictures = sum(len(pictures) for pictures in items.values())
    return SuiteSummary(overall, interval, groups, missing, pictures, len(items))


def _group(values: Sequence[Sequence[float]]) -> tuple[GroupScore, Interval]:
    """The score of a group from the values of each of its prompts, and its interval without the correction
    for few prompts, which sums of groups do not need."""
    table_P2 = np.array([(math.fsum(of_prompt), len(of_prompt)) for of_prompt in values])
    score = min(1.0, float(table_P2[:, 0].sum() / table_P2[:, 1].sum()))
    if all(value in (0.0, 1.0) for of_prompt in values for value in of_prompt):
        few, many = (Interval(*map(float, limits(table_P2, LEVEL, few)[1:])) for few in (True, False))
    else:
        few, many = (_limits_of_mean(table_P2, score, few) for few in (True, False))
    return GroupScore(score, few, int(table_P2[:, 1].sum()), len(values)), many


def _limits_of_mean(table_P2: np.ndarray, score: float, few: bool) -> Interval:
    """Limits of a mean of values between 0 and 1, from sums and numbers of each prompt's: those of
    `limits` for as many 0s and 1s as have its variance, and at least one a prompt.

    The variance is that of a ratio of sums over prompts (Cochran 1977, Sampling Techniques, 11.8).
    """
    prompts, size = len(table_P2), float(len(table_P2))
    if prompts > 1 and 0 < score < 1:
        residuals_P = table_P2[:, 0] - score * table_P2[:, 1]
        variance = prompts / (prompts - 1) * (residuals_P**2).sum() / table_P2[:, 1].sum() ** 2
        size = max(size, score * (1 - score) / variance) if variance > 0 else size
    upper = (1 + LEVEL) / 2
    if few and prompts > 1:
        size *= (special.ndtri(upper) / special.stdtrit(prompts - 1, upper)) ** 2
    x = score * size
    low = float(special.betaincinv(x + 0.25, size - x + 0.75, 1 - upper))
    high = float(special.betaincinv(x + 0.75, size - x + 0.25, upper))
    return Interval(min(low, score), max(high, score))
