"""Two evaluations of the same prompts: the difference per kind, with its confidence interval."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...blocks.errors import BifronsError, counted
from ...blocks.json_config import parse_json
from ..atomic_io import read_lines
from .intervals import Interval
from .paired import Scored, common_counts, difference_limits, overall_limits, overall_p_value, p_value
from .schema import ALL_TAGS

LEVEL = 0.95
FEW_PROMPTS = 10
"""Below this a kind has too few prompts for its interval to mean much."""


@dataclass(frozen=True)
class Difference:
    """Scores of A and of B as shares, 0 to 1, the interval of A - B, and the p-value of no difference: 1
    minus the level at which the interval begins to leave out 0."""

    a: float
    b: float
    interval: Interval
    prompts: int
    p_value: float

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
        """What the interval says."""
        return self.words("A", "B")

    def words(self, a: str, b: str) -> str:
        """`verdict` where the two have these names."""
        if self.too_few:
            return f"too few prompts ({self.prompts}, below {FEW_PROMPTS})"
        if not self.significant:
            return "can't be told apart"
        return f"{a if self.value > 0 else b} is higher"


@dataclass(frozen=True)
class Comparison:
    """Differences per kind that both have, and "overall". only_a, only_b: prompts left out, as the other has
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
    return compare_scored(scored(a, "A"), scored(b, "B"), level)


def compare_scored(a: Scored, b: Scored, level: float = LEVEL) -> Comparison:
    """`compare` of what was scored. There is no overall difference where a kind that it needs is missing."""
    common = common_counts((a, b))
    tables = {kind: counts_P22.reshape(-1, 4) for kind, counts_P22 in common.tables.items()}
    kinds = {
        kind: _difference(difference_limits(counts_P4, level), len(counts_P4), p_value(counts_P4))
        for kind, counts_P4 in tables.items()
    }
    if common.weights:
        sides = overall_limits(tables, common.weights, level)
        p = overall_p_value(tables, common.weights)
        kinds["overall"] = _difference(sides, common.prompts, p)
    only_a, only_b = common.left_out
    return Comparison(kinds, only_a, only_b, level)


def _difference(sides: Sequence[np.ndarray], prompts: int, p: np.ndarray) -> Difference:
    a, b, low, high = map(float, sides)
    return Difference(a, b, Interval(low, high), prompts, float(p))


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
    width = max(14, *map(len, comparison.kinds))
    lines.append(f"{'':<{width}} {'A':>8} {'B':>8} {'A - B':>8}  {comparison.level:.0%} interval")
    for tag, kind in comparison.kinds.items():
        low, high = (f"{100 * side:+.2f}" for side in kind.interval)
        verdict = f"  {kind.verdict}" if kind.verdict else ""
        lines.append(
            f"{tag:<{width}} {kind.a:>8.2%} {kind.b:>8.2%} {100 * kind.value:>+8.2f}  [{low}, {high}]"
            f"  {counted(kind.prompts, 'prompt')}{verdict}"
        )
    if comparison.only_a or comparison.only_b:
        left_out = f"{counted(comparison.only_a, 'prompt')} of A, {comparison.only_b} of B"
        lines.append(f"left out, as the other lacks them: {left_out}")
    return "\n".join(lines)


def scored(rows: Iterable[Mapping[str, Any]], name: str) -> Scored:
    """What results rows say of each prompt: the number of correct images, and of all. Raises BifronsError for
    a malformed row of the run of this name."""
    counts: dict[str, dict[str, tuple[float, int]]] = {tag: {} for tag in ALL_TAGS}
    for number, row in enumerate(rows, 1):
        tag, correct, prompt = row.get("tag"), row.get("correct"), row.get("metadata")
        if tag not in counts or not isinstance(correct, bool) or not isinstance(prompt, str):
            raise BifronsError(f"results of {name}, row {number}: lacks a proper tag, correct or metadata")
        right, images = counts[tag].get(prompt, (0, 0))
        counts[tag][prompt] = (right + correct, images + 1)
    return Scored(counts)
