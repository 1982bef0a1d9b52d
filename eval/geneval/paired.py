"""Differences of evaluations of the same prompts, paired by prompt: limits and p-values.

Shape suffixes: P prompts of one kind; R evaluations; 2: the sum of a prompt's values and their number, such
as correct and all images; 4: those of A and of B. Leading dimensions (...) are pairs of evaluations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...blocks.errors import BifronsError
from .intervals import limits, summed_distances

SMALLEST_P = 1e-9
"""Smaller p-values are not told from this one."""


@dataclass(frozen=True)
class Scored:
    """What one evaluation scored.

    counts: per kind and prompt, the sum of values from 0 to 1 and their number. weights: of the kinds in the
    overall score; None for their mean. conditions: what others must share to be compared with it.
    """

    counts: Mapping[str, Mapping[str, tuple[float, int]]]
    weights: Mapping[str, float] | None = None
    conditions: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Common:
    """What evaluations scored of the prompts that all of them have.

    tables: per kind [P, R, 2]. weights: of the kinds in the overall score, empty where it lacks one. prompts:
    number of those that the overall score is of. left_out: per evaluation, its prompts that another lacks.
    """

    tables: dict[str, np.ndarray]
    weights: dict[str, float]
    prompts: int
    left_out: list[int]


def common_counts(runs: Sequence[Scored]) -> Common:
    """The prompts that all runs have. Raises BifronsError where there is none, or conditions differ."""
    for number, run in enumerate(runs):
        if run.conditions != runs[0].conditions:
            ours, theirs = ((one.conditions or {}) for one in (runs[0], run))
            names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
            listed = "; ".join(f"{name}: {ours.get(name)!r}, not {theirs.get(name)!r}" for name in names)
            raise BifronsError(
                f"A and {label(number)} were not scored alike ({listed}); accepted: results of the same suite"
            )
    keys: dict[str, list[str]] = {}
    for kind, prompts in runs[0].counts.items():
        shared = [key for key in prompts if all(key in run.counts.get(kind, {}) for run in runs)]
        if shared:
            keys[kind] = shared
    if not keys:
        who = "the two" if len(runs) == 2 else "the runs"
        raise BifronsError(f"{who} have no prompt in common; accepted: results of the same suite")
    weights = dict.fromkeys(keys, 1 / len(keys)) if runs[0].weights is None else dict(runs[0].weights)
    if not weights.keys() <= keys.keys():
        weights = {}
    everything = set().union(*keys.values())
    return Common(
        {
            kind: np.array([[run.counts[kind][k] for run in runs] for k in shared])
            for kind, shared in keys.items()
        },
        weights,
        len(set().union(*(keys[kind] for kind in weights))),
        [len(set().union(*run.counts.values()) - everything) for run in runs],
    )


def label(number: int) -> str:
    """The letters that stand for a run in tables: A to Z, then AA, AB ..."""
    first, last = divmod(number, 26)
    return (label(first - 1) if first else "") + chr(ord("A") + last)


def difference_limits(
    counts_P4: np.ndarray, level: float | np.ndarray, few: bool = True
) -> tuple[np.ndarray, ...]:
    """Scores of A and of B [...], and the limits of the interval of A - B, of counts [..., P, 4]. level: a
    number, or one for each pair, [...].

    The limits of A and of B (`intervals.limits`) and the correlation of their scores give those of the
    difference by MOVER (Zou 2007, Psychological Methods 12:399). The correlation is that of the prompts'
    residuals, right - score x images, so that a prompt's difficulty for both is no difference.
    """
    a, low_a, high_a = limits(counts_P4[..., :2], level, few)
    b, low_b, high_b = limits(counts_P4[..., 2:], level, few)
    residual_a = counts_P4[..., 0] - a[..., None] * counts_P4[..., 1]
    residual_b = counts_P4[..., 2] - b[..., None] * counts_P4[..., 3]
    scale = np.sqrt((residual_a**2).sum(-1) * (residual_b**2).sum(-1))
    correlation = (residual_a * residual_b).sum(-1) / np.where(scale > 0, scale, 1)

    def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(one * one + other * other - 2 * correlation * one * other, 0))

    low = np.maximum(a - b - distance(a - low_a, high_b - b), -1)
    high = np.minimum(a - b + distance(high_a - a, b - low_b), 1)
    return a, b, low, high


def overall_limits(
    tables: Mapping[str, np.ndarray], weights: Mapping[str, float], level: float | np.ndarray
) -> tuple[np.ndarray, ...]:
    """`difference_limits` of the kinds' weighted sum, of counts [..., P, 4] per kind: the root of the kinds'
    summed squares, as in `intervals_of_counts`."""
    few = len(weights) == 1 and len(tables) > 1  # the score is a group's, not a sum that needs it less
    sides = {kind: difference_limits(tables[kind], level, few) for kind in weights}
    a, b = (sum(weights[kind] * side[i] for kind, side in sides.items()) for i in (0, 1))
    differences = {kind: (a_k - b_k, low, high) for kind, (a_k, b_k, low, high) in sides.items()}
    below, above = summed_distances(differences, weights)
    value = np.asarray(a - b)
    return np.asarray(a), np.asarray(b), np.maximum(value - below, -1), np.minimum(value + above, 1)


def p_value(counts_P4: np.ndarray) -> np.ndarray:
    """[...]: of counts [..., P, 4], 1 - the level at which the interval of A - B begins to leave out 0."""
    return _p_value(lambda level: difference_limits(counts_P4, level))


def overall_p_value(tables: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """[...]: `p_value` of the overall score."""
    return _p_value(lambda level: overall_limits(tables, weights, level))


def _p_value(limits_at: Callable[[np.ndarray], tuple[np.ndarray, ...]]) -> np.ndarray:
    """By bisection of the logarithm, to 6 digits."""
    least = np.full_like(limits_at(np.array(0.5))[0], math.log(SMALLEST_P))
    most = np.zeros_like(least)
    for _ in range(24):
        middle = (least + most) / 2
        _, _, low, high = limits_at(1 - np.exp(middle))
        told_apart = (low > 0) | (high < 0)
        least, most = np.where(told_apart, least, middle), np.where(told_apart, middle, most)
    return np.exp(most)
