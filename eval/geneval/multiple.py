"""Several evaluations of the same prompts: which of them differ, corrected for the number of comparisons.

Shape suffixes: P prompts of one kind; R evaluations; C pairs of them; 2: correct and all images; 4: those of
both evaluations of a pair.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from ...blocks.errors import OptionError, counted
from .compare import FEW_PROMPTS, LEVEL, Difference
from .intervals import Interval, limits, weighted_limits
from .paired import (
    Common,
    Scored,
    common_counts,
    difference_limits,
    label,
    overall_limits,
    overall_p_value,
    p_value,
)

SHOWN_P = 0.0001
"""Smaller p-values are not spelt out."""
LEAST = 1e-6
"""The nearest to 0 that a limit comes where only Holm's later steps find a difference."""


@dataclass(frozen=True)
class PairDifference(Difference):
    """A difference of run `first` and run `second`, numbers from 0. p_adjusted: corrected for the family of
    `family` comparisons. The interval is corrected for as many and says the same as p_adjusted."""

    first: int = 0
    second: int = 1
    family: int = 1
    p_adjusted: float = 1.0

    @property
    def verdict(self) -> str:
        """What the corrected p-value and interval say."""
        return self.words(label(self.first), label(self.second))


@dataclass(frozen=True)
class Comparisons:
    """Scores of each run and the differences of pairs, per kind that all runs have, and "overall".

    scores: per kind (share, interval) of each run, not corrected. left_out: of each run, the prompts that
    another one lacks.
    """

    scores: dict[str, list[tuple[float, Interval]]]
    pairs: dict[str, list[PairDifference]]
    left_out: list[int]
    level: float


def compare_all(runs: Sequence[Scored], to_first: bool = False, level: float = LEVEL) -> Comparisons:
    """Compare several runs, every pair, or each with the first only.

    Prompts that all runs have are compared, each with its images of both runs of a pair. The p-values of
    overall scores are one family, those of all kinds another; in each, Holm's step-down (1979, Scandinavian
    Journal of Statistics 6:65) holds the chance of calling any equal pair different at 1 - level or below.
    Intervals have the level 1 - (1 - level) / m, m comparisons in the family; where Holm's later steps find a
    difference that this interval misses, its limit stands next to 0. Kinds with fewer than FEW_PROMPTS
    prompts are not tested. Raises OptionError for a single run, and BifronsError where no prompt is common.
    """
    if len(runs) < 2:
        raise OptionError(f"there are {len(runs)} runs to compare; accepted: two or more")
    common = common_counts(runs)
    numbers = [(0, i) for i in range(1, len(runs))] if to_first else list(combinations(range(len(runs)), 2))
    paired = {
        kind: np.stack([counts_PR2[:, pair].reshape(-1, 4) for pair in map(list, numbers)])
        for kind, counts_PR2 in common.tables.items()
    }
    sizes = {kind: len(counts_PR2) for kind, counts_PR2 in common.tables.items()}
    tested = [kind for kind, prompts in sizes.items() if prompts >= FEW_PROMPTS]
    kinds = {kind: p_value(paired[kind]) for kind in tested}
    whole = {"overall": overall_p_value(paired, common.weights)} if common.weights else {}
    pairs: dict[str, list[PairDifference]] = {}
    for family, names in ((kinds, list(paired)), (whole, list(whole))):
        m = max(1, sum(map(len, family.values())))
        flat = holm([float(p) for p_C in family.values() for p in p_C])
        adjusted = dict(zip(family, np.reshape(flat, (-1, len(numbers))), strict=True))
        inner = 1 - (1 - level) / m
        for kind in names:
            if kind in whole:
                sides = overall_limits(paired, common.weights, inner)
            else:
                sides = difference_limits(paired[kind], inner)
            ones = np.ones(len(numbers))
            columns = (*sides, family.get(kind, ones), adjusted.get(kind, ones))
            prompts = common.prompts if kind in whole else sizes[kind]
            pairs[kind] = [
                _pair(pair, prompts, m, level, *map(float, values))
                for pair, *values in zip(numbers, *columns, strict=True)
            ]
    return Comparisons(_scores(common, level), pairs, common.left_out, level)


def _scores(common: Common, level: float) -> dict[str, list[tuple[float, Interval]]]:
    """Each run's score and interval per kind and, where there is one, "overall"."""
    scores: dict[str, list[tuple[float, Interval]]] = {}
    for kind, counts_PR2 in common.tables.items():
        sides = limits(np.moveaxis(counts_PR2, 1, 0), level)
        scores[kind] = [(float(s), Interval(float(a), float(b))) for s, a, b in zip(*sides, strict=True)]
    if common.weights:
        runs = range(len(common.left_out))
        tables = {kind: np.moveaxis(common.tables[kind], 1, 0) for kind in common.weights}
        sides = weighted_limits(tables, common.weights, level, len(common.weights) == 1 < len(common.tables))
        scores["overall"] = [
            (float(sides[0][r]), Interval(float(sides[1][r]), float(sides[2][r]))) for r in runs
        ]
    return scores


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for step, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _pair(
    numbers: tuple[int, int],
    prompts: int,
    family: int,
    level: float,
    a: float,
    b: float,
    low: float,
    high: float,
    p: float,
    adjusted: float,
) -> PairDifference:
    """A pair whose interval leaves out 0 if its adjusted p-value is below 1 - level, and holds it if not."""
    differs = adjusted < 1 - level
    if differs and low <= 0 <= high:
        low, high = (LEAST, max(high, LEAST)) if a > b else (min(low, -LEAST), -LEAST)
    elif not differs:
        low, high = min(low, 0.0), max(high, 0.0)
    return PairDifference(a, b, Interval(low, high), prompts, p, *numbers, family, adjusted)


def format_comparisons(found: Comparisons, names: Sequence[str]) -> str:
    """Scores, then pairs, as plain text; differences in percentage points."""
    lines = [f"{label(number)}: {name}" for number, name in enumerate(names)]
    lines.append(f"{'':<14}" + "".join(f" {label(number):>8}" for number in range(len(names))))
    for tag, row in found.scores.items():
        lines.append(f"{tag:<14}" + "".join(f" {score:>8.2%}" for score, _ in row))
    for tag, pairs in found.pairs.items():
        lines.append(
            f"{tag}: {counted(pairs[0].prompts, 'prompt')}, {found.level:.0%} intervals and p-values "
            f"corrected for {counted(pairs[0].family, 'comparison')}"
        )
        for pair in pairs:
            name = f"{label(pair.first)} - {label(pair.second)}"
            low, high = (f"{100 * side:+.2f}" for side in pair.interval)
            p = f"p < {SHOWN_P}" if pair.p_adjusted < SHOWN_P else f"p = {pair.p_adjusted:.4f}"
            middle = "" if pair.too_few else f"  [{low}, {high}]  {p}"
            lines.append(f"  {name:<9} {100 * pair.value:>+8.2f}{middle}  {pair.verdict}")
    if any(found.left_out):
        listed = ", ".join(f"{count} of {label(n)}" for n, count in enumerate(found.left_out) if count)
        lines.append(f"prompts left out, as not all runs have them: {listed}")
    return "\n".join(lines)


def comparisons_json(found: Comparisons, names: Sequence[str]) -> dict[str, Any]:
    """The comparison as plain JSON values."""
    return {
        "runs": [
            {"label": label(n), "name": name, "prompts_left_out": found.left_out[n]}
            for n, name in enumerate(names)
        ],
        "level": found.level,
        "correction": "Holm",
        "scores": {
            tag: [{"label": label(n), "score": s, "interval": list(i)} for n, (s, i) in enumerate(row)]
            for tag, row in found.scores.items()
        },
        "pairs": {
            tag: [
                {
                    **{key: value for key, value in asdict(pair).items() if key not in ("first", "second")},
                    "first": label(pair.first),
                    "second": label(pair.second),
                    "names": [names[pair.first], names[pair.second]],
                    "difference": pair.value,
                    "interval": list(pair.interval),
                    "p_adjusted": None if pair.too_few else pair.p_adjusted,
                    "p_value": None if pair.too_few else pair.p_value,
                    "verdict": pair.verdict,
                }
                for pair in pairs
            ]
            for tag, pairs in found.pairs.items()
        },
    }
