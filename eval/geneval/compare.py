"""Two evaluations of the same prompts: the difference per kind, with its confidence interval.

Shape suffixes: P prompts of one kind; 4: correct and all images of A and of B. Leading dimensions (...) are
pairs of evaluations.
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
from .intervals import Interval, limits
from .schema import TAGS

LEVEL = 0.95
FEW_PROMPTS = 10
"""Below this a kind has too few prompts for its interval to mean much."""


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

    @property
    def too_few(self) -> bool:
        """Whether there are too few prompts to tell anything."""
        return self.prompts < FEW_PROMPTS

    @property
    def verdict(self) -> str:
        """What the interval says, empty for a difference."""
        if self.too_few:
            return f"too few prompts ({self.prompts}, below {FEW_PROMPTS})"
        return "" if self.significant else "can't be told apart"


@dataclass(frozen=True)
class Comparison:
    """Differences per tag that both have, and "overall". only_a, only_b: prompts left out, as the other has
    none of them."""

    kinds: dict[str, Difference]
    only_a: int
    only_b: int
    level: float


def compare(
    a: Iterable[Mapping[str, Any]], b: Iterable[Mapping[str, Any]], level: float = LEVEL
) -> Comparison:
    """Compare results rows (tag, correct, metadata) over the prompts that both have.

    A kind's interval is that of `difference_limits`; the root of the kinds' summed squares gives the overall
    one. Raises BifronsError where a row is malformed or no prompt is common.
    """
    tables, only_a, only_b = paired_counts(a, b)
    return Comparison(differences(tables, level), only_a, only_b, level)


def paired_counts(
    a: Iterable[Mapping[str, Any]], b: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, np.ndarray], int, int]:
    """Per tag int [P, 4], correct and all images of A and of B of each common prompt; and the number of
    prompts that only A has, and only B."""
    counts_a, counts_b = _by_prompt(a, "A"), _by_prompt(b, "B")
    common = {tag: [key for key in counts_a[tag] if key in counts_b[tag]] for tag in TAGS}
    if not any(common.values()):
        raise BifronsError("the two have no prompt in common; accepted: results of the same suite")
    only = [sum(len(side[tag]) - len(common[tag]) for tag in TAGS) for side in (counts_a, counts_b)]
    tables = {
        tag: np.array([(*counts_a[tag][key], *counts_b[tag][key]) for key in keys])
        for tag, keys in common.items()
        if keys
    }
    return tables, only[0], only[1]


def differences(tables: Mapping[str, np.ndarray], level: float) -> dict[str, Difference]:
    """The difference per tag of `paired_counts`, and "overall"."""
    kinds: dict[str, Difference] = {}
    below, above = [], []
    for tag, counts_P4 in tables.items():
        a, b, low, high = map(float, difference_limits(counts_P4, level))
        kinds[tag] = Difference(a, b, Interval(low, high), len(counts_P4))
        a, b, low, high = map(float, difference_limits(counts_P4, level, few=False))
        below.append(a - b - low)
        above.append(high - (a - b))
    mean_a, mean_b = (sum(getattr(kind, side) for kind in kinds.values()) / len(kinds) for side in "ab")
    value = mean_a - mean_b
    low, high = (math.hypot(*side) / len(kinds) for side in (below, above))
    span = Interval(max(-1.0, value - low), min(1.0, value + high))
    return {**kinds, "overall": Difference(mean_a, mean_b, span, sum(k.prompts for k in kinds.values()))}


def difference_limits(counts_P4: np.ndarray, level: float, few: bool = True) -> tuple[np.ndarray, ...]:
    """Scores of A and of B [...], and the limits of the interval of A - B, of counts [..., P, 4].

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
        verdict = f"  {kind.verdict}" if kind.verdict else ""
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
