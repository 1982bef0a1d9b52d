"""From the items of pictures to a suite's scores with intervals over prompts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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
    (score, *few), (_, *many) = (map(float, limits(table_P2, LEVEL, few)) for few in (True, False))
    return GroupScore(score, Interval(*few), int(table_P2[:, 1].sum()), len(values)), Interval(*many)
