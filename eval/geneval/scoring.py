"""GenEval's verdicts from detections, and their summary: pure functions.

The rules are those of the published scorer (Ghosh et al. 2023, arXiv 2310.11513; repository
djghosh13/geneval), so that equal detections get equal verdicts. Shape legend: N boxes of one class, 5 numbers
each (x0, y0, x1, y1 in pixels, score).
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...blocks.errors import BifronsError
from .intervals import Interval, count_prompts, intervals, intervals_of_counts
from .schema import RELATIONS, TAGS, Clause, Row, read_row

__all__ = [
    "RELATIONS",
    "TAGS",
    "BadLine",
    "Interval",
    "KindScore",
    "Summary",
    "Verdict",
    "format_table",
    "intervals",
    "intervals_of_counts",
    "relations",
    "results_row",
    "score_row",
    "summarize",
]

# The published scorer's defaults.
THRESHOLD = np.float32(0.3)
COUNTING_THRESHOLD = np.float32(0.9)
MAX_OBJECTS = 16
POSITION_SLACK = np.float32(0.1)
NO_OFFSET = np.float32(1e-3)


@dataclass(frozen=True)
class Verdict:
    """`details` are the boxes kept per class, best first; `reason` has a line for each clause that failed."""

    correct: bool
    reason: str
    details: dict[str, list[list[float]]]


def score_row(row: Mapping[str, Any]) -> Verdict:
    """Judge one picture's detections.

    row: {"filename", "metadata" (a line of GenEval's prompts file), "boxes": {class: [[x0, y0, x1, y1,
    score], ...]}, "colors": {class: [name, ...]}}; colors[class][i] is the classifier's name for
    boxes[class][i], and may be None where no clause asks for it. Raises BifronsError for a malformed row.
    """
    seen = read_row(row)
    threshold = COUNTING_THRESHOLD if seen.tag == "counting" else THRESHOLD
    kept = {cls: keep(boxes_N5[:, 4], threshold) for cls, boxes_N5 in seen.boxes.items()}
    kept = {cls: order for cls, order in kept.items() if len(order)}
    failures: list[str] = []
    groups: list[np.ndarray | None] = []
    for clause in seen.include:
        failure = _include_failure(seen, clause, kept, groups)
        if failure:
            failures.append(failure)
        groups.append(None if failure else seen.boxes[clause.cls][kept[clause.cls][: clause.count]])
    for clause in seen.exclude:
        number = len(kept.get(clause.cls, ()))
        if number >= clause.count:
            failures.append(f"{clause.cls}: fewer than {clause.count} allowed, {number} detected")
    details = {cls: seen.boxes[cls][order].tolist() for cls, order in kept.items()}
    return Verdict(not failures, "\n".join(failures), details)


def keep(scores_N: np.ndarray, threshold: np.float32) -> np.ndarray:
    """Indices of the boxes that count, best first: strictly above the threshold, at most 16.

    scores_N: float32. The order is numpy's default argsort, reversed, because that is what the published
    scorer calls: boxes with *equal* scores come in the order of numpy's sorting network for this processor
    (highest index first where it has none). A stable sort would be tidier and not the same.
    """
    order = np.argsort(scores_N)[::-1]
    return order[scores_N[order] > threshold][:MAX_OBJECTS]


def _include_failure(
    row: Row, clause: Clause, kept: dict[str, np.ndarray], groups: list[np.ndarray | None]
) -> str | None:
    """Why the clause does not hold, or None. Only its `count` best boxes are looked at."""
    cls, found = clause.cls, kept.get(clause.cls, np.zeros(0, int))[: clause.count]
    if len(found) < clause.count:
        return f"{cls}: at least {clause.count} wanted, {len(found)} detected"
    if clause.color is not None:
        named = Counter(_color(row, cls, int(i)) for i in found)
        if named[clause.color] < clause.count:
            given = ", ".join(f"{number} {color}" for color, number in sorted(named.items()))
            return f"{cls}: at least {clause.count} {clause.color} wanted, seen: {given}"
    if clause.relation is not None:
        targets = groups[clause.target]
        if targets is None:
            target = row.include[clause.target].cls
            return f"{cls}: wanted {clause.relation} {target}, which failed its own clause"
        for box in row.boxes[cls][found]:
            for target in targets:
                held = relations(box, target)
                if clause.relation not in held:
                    is_ = " and ".join(r for r in RELATIONS if r in held) or "in no clear relation to it"
                    return f"{cls}: wanted {clause.relation} {row.include[clause.target].cls}, is {is_}"
    return None


def _color(row: Row, cls: str, index: int) -> str:
    color = row.colors[cls][index]
    if color is None:
        raise BifronsError(f"row {row.name}: colors[{cls!r}][{index}] is null; accepted: a colour name")
    return color


def relations(a: np.ndarray, b: np.ndarray) -> set[str]:
    """Where box `a` lies as seen from box `b` (float32, x0, y0, x1, y1 first): up to two of RELATIONS.

    The centres' offset is shortened per axis by a tenth of both extents, and an axis counts when what is
    left exceeds half of the whole offset's length; a clear diagonal so has two relations.
    """
    low_a, high_a, low_b, high_b = a[0:2], a[2:4], b[0:2], b[2:4]
    offset = (low_a + high_a) / 2 - (low_b + high_b) / 2
    extent = np.abs(high_a - low_a) + np.abs(high_b - low_b)
    rest = np.maximum(np.abs(offset) - POSITION_SLACK * extent, 0) * np.sign(offset)
    if (np.abs(rest) < NO_OFFSET).all():
        return set()
    dx, dy = rest / np.linalg.norm(offset)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, true in holds.items() if true}


def results_row(row: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
    """The published results form: metadata and details are JSON texts inside it."""
    return {
        "filename": row["filename"],
        "tag": row["metadata"]["tag"],
        "prompt": row["metadata"]["prompt"],
        "correct": verdict.correct,
        "reason": verdict.reason,
        "metadata": json.dumps(row["metadata"]),
        "details": json.dumps(verdict.details),
    }


@dataclass(frozen=True)
class KindScore:
    """One tag: `score` is the share of its pictures that are correct."""

    correct: int
    images: int
    prompts: int

    @property
    def score(self) -> float:
        return self.correct / self.images


@dataclass(frozen=True)
class BadLine:
    """A line of a detections file that was not scored; lines count from 1."""

    line: int
    reason: str


@dataclass(frozen=True)
class Summary:
    """Scores are shares, 0 to 1. `overall` is the mean over the kinds that occur; `correct_prompts` counts a
    prompt that has any correct picture; prompts are told apart by their metadata."""

    kinds: dict[str, KindScore]
    overall: float
    correct_images: float
    correct_prompts: float
    images: int
    prompts: int
    intervals: dict[str, Interval] = field(default_factory=dict)
    bad_lines: tuple[BadLine, ...] = ()


def summarize(results_rows: Iterable[Mapping[str, Any]]) -> Summary:
    """Sum up results rows; reads their tag, correct and metadata only.

    Raises BifronsError when there is no row, or one has an unknown tag or lacks a field.
    """
    counts = count_prompts(results_rows)
    kinds = {
        tag: KindScore(int(table[:, 0].sum()), int(table[:, 1].sum()), len(table))
        for tag, table in counts.items()
    }
    images = sum(kind.images for kind in kinds.values())
    prompts = sum(kind.prompts for kind in kinds.values())
    return Summary(
        kinds=kinds,
        overall=sum(kind.score for kind in kinds.values()) / len(kinds),
        correct_images=sum(kind.correct for kind in kinds.values()) / images,
        correct_prompts=sum(int((table[:, 0] > 0).sum()) for table in counts.values()) / prompts,
        images=images,
        prompts=prompts,
    )


def format_table(summary: Summary) -> str:
    """The summary as lines of plain text, with intervals where the summary has them."""

    def line(name: str, score: float, counts: str = "") -> str:
        span = summary.intervals.get(name)
        shown = f"  [{span.low:7.2%}, {span.high:7.2%}]" if span else ""
        return f"{name:<14} {score:8.2%}{shown}  {counts}".rstrip()

    lines = [
        line(tag, kind.score, f"{kind.correct} of {kind.images} pictures, {kind.prompts} prompts")
        for tag, kind in summary.kinds.items()
    ]
    absent = [tag for tag in TAGS if tag not in summary.kinds]
    note = f"mean of {len(summary.kinds)} kinds" + (f"; absent: {', '.join(absent)}" if absent else "")
    lines += [
        line("overall", summary.overall, note),
        line("images", summary.correct_images, f"correct, of {summary.images}"),
        line("prompts", summary.correct_prompts, f"with a correct picture, of {summary.prompts}"),
    ]
    if summary.bad_lines:
        lines.append(f"NOT SCORED: {len(summary.bad_lines)} lines")
    return "\n".join(lines)
