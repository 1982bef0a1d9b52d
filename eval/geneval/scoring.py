"""GenEval's verdicts from detections, and their summary: pure functions.

The rules are those of the published scorer (Ghosh et al. 2023, arXiv 2310.11513; repository
djghosh13/geneval), so that equal detections get equal verdicts.

Shape suffixes: N boxes of one class, 5 numbers each (x0, y0, x1, y1 in pixels, score).
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...blocks.errors import BifronsError, counted
from .intervals import Interval, count_prompts, intervals, intervals_of_counts
from .options import OFFICIAL, ScorerOptions, select_boxes
from .reasons import Failure, explain
from .schema import RELATIONS, TAGS, Clause, Row, read_row, tags_of_suite

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

NO_OFFSET = np.float32(1e-3)


@dataclass(frozen=True)
class Verdict:
    """The result for one image. reason: a line for each clause that failed. details: the boxes per class
    that were above the threshold, best first."""

    correct: bool
    reason: str
    details: dict[str, list[list[float]]]


def score_row(
    row: Mapping[str, Any], options: ScorerOptions = OFFICIAL, official_reasons: bool = False
) -> Verdict:
    """Judge the detections in one image.

    row: {"filename", "metadata" (a line of GenEval's prompts file), "boxes": {class: [[x0, y0, x1, y1,
    score], ...]}, "colors": {class: [name, ...]}}; colors[class][i] is the colour of boxes[class][i], and
    may be None where no clause needs it. official_reasons: the reason in the published scorer's words.
    Raises BifronsError for a malformed row.
    """
    checked = read_row(row)
    selected = {cls: select_boxes(boxes_N5, checked.tag, options) for cls, boxes_N5 in checked.boxes.items()}
    selected = {cls: order for cls, order in selected.items() if len(order)}
    failures: list[Failure] = []
    clause_boxes: list[np.ndarray | None] = []
    for clause in checked.include:
        failure = _include_failure(checked, clause, selected, clause_boxes, options)
        if failure:
            failures.append(failure)
        best = selected.get(clause.cls, np.zeros(0, int))[: clause.count]
        clause_boxes.append(None if failure else checked.boxes[clause.cls][best])
    for clause in checked.exclude:
        indices = selected.get(clause.cls, ())
        if clause.color is not None:
            indices = [i for i in indices if _color(checked, clause.cls, int(i)) == clause.color]
        number = len(indices)
        if number >= clause.count:
            failures.append(Failure("excess", clause, number))
    details = {cls: checked.boxes[cls][order].tolist() for cls, order in selected.items()}
    return Verdict(not failures, explain(failures, official_reasons), details)


def _include_failure(
    row: Row,
    clause: Clause,
    selected: dict[str, np.ndarray],
    clause_boxes: list[np.ndarray | None],
    options: ScorerOptions,
) -> Failure | None:
    """Why the clause does not hold, or None. Only its `count` best boxes are checked.

    clause_boxes: those boxes of the earlier clauses, None for one that failed.
    """
    cls, best = clause.cls, selected.get(clause.cls, np.zeros(0, int))[: clause.count]
    if len(best) < clause.count:
        return Failure("missing", clause, len(best))
    if clause.color is not None:
        colors = Counter(_color(row, cls, int(i)) for i in best)
        if colors[clause.color] < clause.count:
            return Failure("color", clause, len(best), colors)
    if clause.relation is not None:
        targets, target_class = clause_boxes[clause.target], row.include[clause.target].cls
        if targets is None:
            return Failure("lost", clause, len(best), target=target_class)
        for box in row.boxes[cls][best]:
            for target in targets:
                holding = relations(box, target, options.position_threshold)
                if clause.relation not in holding:
                    return Failure(
                        "position", clause, len(best), target=target_class, holding=frozenset(holding)
                    )
    return None


def _color(row: Row, cls: str, index: int) -> str:
    color = row.colors[cls][index]
    if color is None:
        raise BifronsError(f"row {row.name}: colors[{cls!r}][{index}] is null; accepted: a colour name")
    return color


def relations(a: np.ndarray, b: np.ndarray, slack: float = OFFICIAL.position_threshold) -> set[str]:
    """The relations of box `a` to box `b` (float32, x0, y0, x1, y1 first): up to two of RELATIONS.

    The offset of the centres is reduced per axis by `slack` times both extents; an axis counts where the rest
    exceeds half the length of the whole offset. A clear diagonal therefore has two relations.
    """
    low_a, high_a, low_b, high_b = a[0:2], a[2:4], b[0:2], b[2:4]
    offset = (low_a + high_a) / 2 - (low_b + high_b) / 2
    extent = np.abs(high_a - low_a) + np.abs(high_b - low_b)
    rest = np.maximum(np.abs(offset) - np.float32(slack) * extent, 0) * np.sign(offset)
    if (np.abs(rest) < NO_OFFSET).all():
        return set()
    dx, dy = rest / np.linalg.norm(offset)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, holding in holds.items() if holding}


def results_row(row: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
    """A row of results.jsonl in the published format, where metadata and details are JSON texts."""
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
    """Counts of one kind: correct images, all images, prompts."""

    correct: int
    images: int
    prompts: int

    @property
    def score(self) -> float:
        """The share of correct images."""
        return self.correct / self.images


@dataclass(frozen=True)
class BadLine:
    """A line of a detections file that was not scored; lines count from 1."""

    line: int
    reason: str


@dataclass(frozen=True)
class Summary:
    """An evaluation's scores, as shares from 0 to 1. overall: mean over the kinds that occur.
    correct_prompts: share of prompts with any correct image. Prompts are identified by their metadata."""

    kinds: dict[str, KindScore]
    overall: float
    correct_images: float
    correct_prompts: float
    images: int
    prompts: int
    intervals: dict[str, Interval] = field(default_factory=dict)
    bad_lines: tuple[BadLine, ...] = ()


def summarize(results_rows: Iterable[Mapping[str, Any]]) -> Summary:
    """Summarize results rows, of which it reads tag, correct and metadata.

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
    """The summary as plain text, with intervals where it has them."""

    def line(name: str, score: float, counts: str = "") -> str:
        span = summary.intervals.get(name)
        shown = f"  [{span.low:7.2%}, {span.high:7.2%}]" if span else ""
        return f"{name:<14} {score:8.2%}{shown}  {counts}".rstrip()

    lines = [
        line(
            tag,
            kind.score,
            f"{kind.correct:,} of {counted(kind.images, 'picture')}, {counted(kind.prompts, 'prompt')}",
        )
        for tag, kind in summary.kinds.items()
    ]
    absent = [tag for tag in tags_of_suite(summary.kinds) if tag not in summary.kinds]
    note = f"mean of {len(summary.kinds)} kinds" + (f"; absent: {', '.join(absent)}" if absent else "")
    lines += [
        line("overall", summary.overall, note),
        line("images", summary.correct_images, f"correct, of {summary.images}"),
        line("prompts", summary.correct_prompts, f"with a correct picture, of {summary.prompts}"),
    ]
    if summary.bad_lines:
        lines.append(f"NOT SCORED: {counted(len(summary.bad_lines), 'line')}")
    return "\n".join(lines)
