"""Two evaluations of the same prompts: the difference per kind, with its confidence interval.

Shape suffixes: P prompts of one kind, V distinct values, B bootstrap samples.
"""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...blocks.errors import BifronsError
from ...blocks.json_config import parse_json
from ..atomic_io import read_lines
from .intervals import Interval, intervals_of_counts
from .schema import TAGS

_LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """Scores of A and of B as shares, 0 to 1, and the interval of A - B."""

    a: float
    b: float
    interval: Interval
    prompts: int

    @property
    def value(self) -> float:
        """A - B."""
        return self.a - self.b

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.interval.low <= 0 <= self.interval.high


@dataclass(frozen=True)
class Comparison:
    """Differences per tag that both have, and "overall". only_a, only_b: prompts left out, as the other has
    none of them."""

    kinds: dict[str, Difference]
    only_a: int
    only_b: int
    level: float


def compare(
    a: Iterable[Mapping[str, Any]],
    b: Iterable[Mapping[str, Any]],
    level: float = _LEVEL,
    samples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare results rows (tag, correct, metadata) over the prompts that both have.

    The bootstrap resamples prompts, each with all its images of A and of B, so that a prompt's difficulty
    for both is no difference. It gives the correlation of A's and B's scores; their intervals
    (`intervals_of_counts`) and that correlation give the interval of the difference by MOVER (Zou 2007,
    Psychological Methods 12:399). The root of the summed squares of the kinds' limits gives the overall one.
    Raises BifronsError where a row is malformed or no prompt is common.
    """
    counts_a, counts_b = _by_prompt(a, "A"), _by_prompt(b, "B")
    common = {tag: [key for key in counts_a[tag] if key in counts_b[tag]] for tag in TAGS}
    if not any(common.values()):
        raise BifronsError("the two have no prompt in common; accepted: results of the same suite")
    kinds: dict[str, Difference] = {}
    below, above = [], []
    for place, tag in enumerate(tag for tag in TAGS if common[tag]):
        counts_P4 = np.array([(*counts_a[tag][key], *counts_b[tag][key]) for key in common[tag]])
        kind, (low, high) = _difference(counts_P4, level, samples, np.random.default_rng([seed, place]))
        kinds[tag] = kind
        below.append(low)
        above.append(high)
    mean_a, mean_b = (sum(getattr(kind, side) for kind in kinds.values()) / len(kinds) for side in "ab")
    value = mean_a - mean_b
    low, high = (math.hypot(*side) / len(kinds) for side in (below, above))
    prompts = sum(kind.prompts for kind in kinds.values())
    kinds["overall"] = Difference(
        mean_a, mean_b, Interval(max(-1.0, value - low), min(1.0, value + high)), prompts
    )
    only = [sum(len(side[tag]) - len(common[tag]) for tag in TAGS) for side in (counts_a, counts_b)]
    return Comparison(kinds, only[0], only[1], level)


def read_results(path: Path) -> list[dict[str, Any]]:
    """Rows of a results.jsonl, or of the one in a run folder. Raises BifronsError where it can't be used."""
    source = path / "results.jsonl" if os.path.isdir(path) else path
    rows = []
    for number, line in read_lines(source):
        row = parse_json(line, f"{source} holds a line that is no results row: line {number}", BifronsError)
        if not isinstance(row, dict):
            raise BifronsError(f"{source} holds a line that is no results row: line {number} is no object")
        rows.append(row)
    return rows


def format_comparison(comparison: Comparison, a: str, b: str) -> str:
    """The comparison as plain text, differences in percentage points."""
    lines = [f"A: {a}", f"B: {b}"]
    lines.append(f"{'':<14} {'A':>8} {'B':>8} {'A - B':>8}  {comparison.level:.0%} interval")
    for tag, kind in comparison.kinds.items():
        low, high = (f"{100 * side:+.2f}" for side in kind.interval)
        verdict = "" if kind.significant else "  can't be told apart"
        lines.append(
            f"{tag:<14} {kind.a:>8.2%} {kind.b:>8.2%} {100 * kind.value:>+8.2f}  [{low}, {high}]"
            f"  {kind.prompts} prompts{verdict}"
        )
    if comparison.only_a or comparison.only_b:
        left_out = f"{comparison.only_a} prompts of A, {comparison.only_b} of B"
        lines.append(f"left out, as the other lacks them: {left_out}")
    return "\n".join(lines)


def _by_prompt(rows: Iterable[Mapping[str, Any]], name: str) -> dict[str, dict[str, tuple[int, int]]]:
    """Per tag and prompt: the number of correct images, and of all."""
    counts: dict[str, dict[str, tuple[int, int]]] = {tag: {} for tag in TAGS}
    for number, row in enumerate(rows, 1):
        tag, correct, prompt = row.get("tag"), row.get("correct"), row.get("metadata")
        if tag not in counts or not isinstance(correct, bool) or not isinstance(prompt, str):
            raise BifronsError(f"results of {name}, row {number}: lacks a proper tag, correct or metadata")
        right, images = counts[tag].get(prompt, (0, 0))
        counts[tag][prompt] = (right + correct, images + 1)
    return counts


def _difference(
    counts_P4: np.ndarray, level: float, samples: int, generator: np.random.Generator
) -> tuple[Difference, tuple[float, float]]:
    """A kind's difference, and the distances of its limits that enter the overall interval."""
    right_a, all_a, right_b, all_b = counts_P4.sum(axis=0)
    a, b = float(right_a / all_a), float(right_b / all_b)
    correlation = _correlation(counts_P4, samples, generator)
    of_a, of_b = (_spans(counts_P4[:, side], level, samples) for side in (slice(0, 2), slice(2, 4)))
    distances = [
        (_combine(a - x.low, y.high - b, correlation), _combine(x.high - a, b - y.low, correlation))
        for x, y in zip(of_a, of_b, strict=True)
    ]
    (low, high), overall = distances
    interval = Interval(max(-1.0, a - b - low), min(1.0, a - b + high))
    return Difference(a, b, interval, len(counts_P4)), overall


def _spans(right_all_P2: np.ndarray, level: float, samples: int) -> tuple[Interval, Interval]:
    """A share's own interval, and the one that enters an overall score (that of a single kind)."""
    spans = intervals_of_counts({TAGS[0]: right_all_P2}, level, samples)
    return spans[TAGS[0]], spans["overall"]


def _combine(one: float, other: float, correlation: float) -> float:
    """MOVER's distance of the difference's limit from those of the two shares."""
    return math.sqrt(max(0.0, one * one + other * other - 2 * correlation * one * other))


def _correlation(counts_P4: np.ndarray, samples: int, generator: np.random.Generator) -> float:
    """Correlation of A's and B's scores over resamplings of the prompts; 0 where one is constant."""
    values_V4, times_V = np.unique(counts_P4, axis=0, return_counts=True)
    drawn_BV = generator.multinomial(len(counts_P4), times_V / len(counts_P4), size=samples)
    right_a_B, all_a_B, right_b_B, all_b_B = (drawn_BV @ values_V4).T
    a_B, b_B = right_a_B / all_a_B, right_b_B / all_b_B
    if np.ptp(a_B) == 0 or np.ptp(b_B) == 0:
        return 0.0
    return float(np.corrcoef(a_B, b_B)[0, 1])
