"""The content of a report, read from a scored run folder: scores, comparisons, failures."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...blocks.errors import BifronsError, check_integer, check_number
from ...blocks.json_config import decode_json
from ..atomic_io import read_json, read_lines
from ..geneval.intervals import Interval
from ..geneval.published import PUBLISHED, REPRODUCED, Figures, of_model
from ..geneval.schema import ALL_TAGS, tags_of_suite
from .facts import Part, asked_for, read_parts, run_facts
from .obstacles import find_obstacles, prompts_sha256, scorer_options


@dataclass(frozen=True)
class Score:
    """The share of correct images of one kind (or "overall") with its interval.

    ties: the other kinds whose scores do not differ significantly from this one.
    """

    tag: str
    share: float
    interval: Interval
    correct: int
    images: int
    prompts: int
    ties: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """An image with its verdict; reason is empty for a correct one. boxes: (class, [x0, y0, x1, y1, score])
    in pixels, of the classes asked for, else of all. image: its file, None where it is gone."""

    filename: str
    tag: str
    prompt: str
    reason: str
    boxes: tuple[tuple[str, list[float]], ...]
    image: Path | None


@dataclass(frozen=True)
class Report:
    """What both forms of the report show.

    obstacles: why the score may not be called GenEval; empty if it may. absent: kinds without an image.
    conditions: what two runs must share for their scores to be compared: the scored prompts' sha256, the
    detector's fingerprint, the scorer's options. failures: a sample of the `failed` wrong images. published,
    reproduced: figures of the same model; others: published figures of all models.
    """

    model: str | None
    detector: str
    obstacles: tuple[str, ...]
    scores: tuple[Score, ...]
    overall: Score
    level: float
    correct_prompts: float
    absent: tuple[str, ...]
    failures: tuple[Failure, ...]
    failed: int
    not_scored: tuple[str, ...]
    recipe: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...]
    note: str | None
    facts: tuple[tuple[str, str], ...]
    parts: Mapping[str, tuple[Part, ...]]
    conditions: tuple[str, ...]
    successes: tuple[Failure, ...]
    rows: tuple[Mapping[str, Any], ...]
    published: Figures | None
    reproduced: Figures | None
    others: tuple[Figures, ...]

    @property
    def comparable(self) -> bool:
        """Whether the score may be called GenEval."""
        return not self.obstacles

    @property
    def title(self) -> str:
        """The report's heading."""
        name = "GenEval" if self.comparable else "GenEval-style evaluation"
        return f"{name} of {self.model}" if self.model else f"{name} of imported pictures"

    @property
    def references(self) -> list[tuple[str, Figures]]:
        """The figures of the same model, each with the heading of its column."""
        pairs = (("published", self.published), ("reproduced", self.reproduced))
        return [(heading, figures) for heading, figures in pairs if figures is not None]

    @property
    def citations(self) -> list[str]:
        """Where the figures of others come from."""
        return sorted({figures.source for figures in (*self.others, self.reproduced) if figures})


def read_report(run_dir: Path, max_failures: int) -> Report:
    """Read a scored run folder. Raises BifronsError where results.jsonl or summary.json is missing or odd."""
    for name in ("results.jsonl", "summary.json"):
        if not os.path.isfile(run_dir / name):
            raise BifronsError(f"{run_dir} has no {name}; accepted: a run that `bifrons eval score` scored")
    summary, run = _read_object(run_dir / "summary.json"), _read_object(run_dir / "run.json")
    recipe: Mapping[str, Any] = run["recipe"] if isinstance(run.get("recipe"), Mapping) else {}
    rows = list(_results(run_dir / "results.jsonl"))
    scores, overall = _scores(summary, run_dir / "summary.json")
    detector = _detector(run_dir, summary, run)
    options = scorer_options(detector, summary)
    obstacles = find_obstacles(detector, recipe, rows, len(summary.get("not_scored", ())), options)
    model = recipe.get("model") or run.get("model")
    found = {score.tag for score in scores}
    right = [row for row in rows if row["correct"]]
    wrong = [row for row in rows if not row["correct"]]
    source = run.get("source")
    folders = [run_dir / "images", *([Path(source)] if isinstance(source, str) else []), run_dir]
    settings = {key: run[key] for key in ("model_fingerprint", "fingerprint", "source") if key in run}
    return Report(
        model=model,
        detector=str(detector.get("name", "unknown")),
        obstacles=obstacles,
        scores=scores,
        overall=overall,
        level=float(summary.get("interval_level", 0.95)),
        correct_prompts=float(summary.get("correct_prompts", 0)),
        absent=tuple(tag for tag in tags_of_suite(found) if tag not in found),
        failures=tuple(_failure(row, folders) for row in sample_rows(wrong, max_failures)),
        failed=len(wrong),
        not_scored=tuple(_problem(item) for item in summary.get("not_scored", ())),
        recipe=tuple(
            (key.replace("_", " "), "none" if value is None else str(value))
            for key, value in {**recipe, **settings}.items()
        ),
        options=tuple((f"scorer's {name}", str(value)) for name, value in options.items()),
        note=str(run["note"]) if run.get("note") else None,
        facts=run_facts(run_dir, run, detector),
        parts=read_parts(summary.get("breakdown")),
        conditions=(prompts_sha256(rows), str(detector.get("fingerprint")), json.dumps(options)),
        successes=tuple(_failure(row, folders) for row in sample_rows(right, max_failures // 3)),
        rows=tuple(rows),
        published=of_model(model, PUBLISHED) if model and not obstacles else None,
        reproduced=of_model(model, REPRODUCED) if model and not obstacles else None,
        others=() if obstacles else PUBLISHED,
    )


def sample_rows(rows: Sequence[Mapping[str, Any]], limit: int) -> list[Mapping[str, Any]]:
    """At most `limit` rows: as equally many of each kind as there are, evenly spaced over the kind's rows."""
    by_kind = {tag: [row for row in rows if row["tag"] == tag] for tag in ALL_TAGS}
    counts = dict.fromkeys(by_kind, 0)
    left = min(limit, len(rows))
    while left:
        for tag, of_kind in by_kind.items():
            if left and counts[tag] < len(of_kind):
                counts[tag] += 1
                left -= 1
    return [
        of_kind[i * len(of_kind) // count]
        for of_kind, count in zip(by_kind.values(), counts.values(), strict=True)
        for i in range(count)
    ]


def differ(a: Score, b: Score) -> bool:
    """Whether the interval of the difference of two independent scores leaves out 0 (Zou and Donner's
    MOVER, 2008, Statistics in Medicine 27:1693)."""
    if a.share < b.share:
        a, b = b, a
    return a.share - b.share > math.hypot(a.share - a.interval.low, b.interval.high - b.share)


def verdict(score: Score, value: float) -> str:
    """Our score against a figure of others, which has no interval of its own."""
    if score.interval.low <= value <= score.interval.high:
        return "not told apart"
    return "ours is higher" if score.share > value else "ours is lower"


def _scores(summary: Mapping[str, Any], path: Path) -> tuple[tuple[Score, ...], Score]:
    """The kinds' scores, and the overall one."""
    try:
        scores = [
            Score(
                tag,
                check_number("score", kind["score"], 0, 1),
                _interval(kind["interval"]),
                check_integer("correct", kind["correct"], 0),
                check_integer("images", kind["images"], 0),
                check_integer("prompts", kind["prompts"], 0),
            )
            for tag in ALL_TAGS
            if (kind := summary["kinds"].get(tag))
        ]
        overall = Score(
            "overall",
            check_number("overall", summary["overall"], 0, 1),
            _interval(summary["overall_interval"]),
            sum(score.correct for score in scores),
            check_integer("images", summary["images"], 0),
            check_integer("prompts", summary["prompts"], 0),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BifronsError(f"{path} lacks {error}; accepted: what `bifrons eval score` writes") from error
    ties = (tuple(b.tag for b in scores if b is not a and not differ(a, b)) for a in scores)
    return tuple(replace(a, ties=tags) for a, tags in zip(scores, ties, strict=True)), overall


def _interval(sides: Any) -> Interval:
    low, high = sides
    return Interval(check_number("interval", low, 0, 1), check_number("interval", high, 0, 1))


def _detector(run_dir: Path, summary: Mapping[str, Any], run: Mapping[str, Any]) -> Mapping[str, Any]:
    """{"name", "comparable"} as the detection stage wrote it, or nothing for detections from elsewhere."""
    stage = _read_object(run_dir / "detect.json")
    for detector in (summary.get("detector"), stage.get("detector", stage), run.get("detector")):
        if isinstance(detector, Mapping) and "name" in detector:
            return detector
    return {}


def _results(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of results.jsonl, checked."""
    for number, line in read_lines(path):
        try:
            row = decode_json(line)
            texts = [row[key] for key in ("filename", "tag", "prompt", "reason")]
            details, metadata = (decode_json(row[key].encode()) for key in ("details", "metadata"))
            valid = isinstance(row["correct"], bool) and row["tag"] in ALL_TAGS
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BifronsError(f"{path} line {number} is no results row: {error!r}") from error
        valid = valid and isinstance(metadata, dict) and isinstance(details, dict)
        valid = valid and all(map(_are_boxes, details.values()))
        if not valid or not all(isinstance(text, str) for text in texts):
            raise BifronsError(f"{path} line {number} is no results row; accepted: what the scorer writes")
        yield row


def _are_boxes(boxes: Any) -> bool:
    if not isinstance(boxes, list) or not all(isinstance(box, list) and len(box) == 5 for box in boxes):
        return False
    return all(type(number) in (int, float) for box in boxes for number in box)


def _failure(row: Mapping[str, Any], folders: Sequence[Path]) -> Failure:
    details = json.loads(row["details"])
    boxes = tuple(asked_for(row, details) or ((cls, box) for cls, found in details.items() for box in found))
    paths = (folder / row["filename"] for folder in folders)
    image = next((path for path in paths if os.path.isfile(path)), None)
    return Failure(row["filename"], row["tag"], row["prompt"], row["reason"], boxes, image)


def _problem(item: Any) -> str:
    """An entry of the summary's `not_scored` as a line of text."""
    if not isinstance(item, Mapping):
        return str(item)
    place = item.get("filename") or f"detections, line {item.get('line')}"
    return f"{place}: {item.get('reason')}"


def _read_object(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file, empty where there is no file. Raises BifronsError for anything else."""
    content = read_json(path) if os.path.isfile(path) else {}
    if not isinstance(content, Mapping):
        raise BifronsError(f"{path} holds no JSON object")
    return content
