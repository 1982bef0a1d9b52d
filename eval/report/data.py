"""What a report says, gathered from a run folder and judged: scores, comparisons, failures."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...blocks.errors import BifronsError
from ..atomic_io import read_json
from ..geneval.intervals import Interval
from ..geneval.published import PUBLISHED, REPRODUCED, Figures, of_model
from ..geneval.schema import TAGS
from ..geneval.suites import is_official, lines_sha256

NAMES = {
    "single_object": "single object",
    "two_object": "two objects",
    "counting": "counting",
    "colors": "colours",
    "position": "position",
    "color_attr": "attribute binding",
    "overall": "overall",
}


@dataclass(frozen=True)
class Score:
    """One bar: a share and its interval. `alike`: the kinds that it can't be told apart from."""

    tag: str
    share: float
    interval: Interval
    correct: int
    images: int
    prompts: int
    alike: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """One picture that was scored as wrong. `boxes`: (class, [x0, y0, x1, y1, score]) in pixels."""

    filename: str
    tag: str
    prompt: str
    reason: str
    boxes: tuple[tuple[str, list[float]], ...]
    picture: Path | None


@dataclass(frozen=True)
class Report:
    """All that both reports show. `obstacles`: why the score may not be called GenEval; empty if it may."""

    model: str | None
    suite: str | None
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
    published: Figures | None
    reproduced: Figures | None
    others: tuple[Figures, ...]

    @property
    def comparable(self) -> bool:
        return not self.obstacles

    @property
    def title(self) -> str:
        name = "GenEval" if self.comparable else "GenEval-style evaluation"
        return f"{name} of {self.model}" if self.model else f"{name} of imported pictures"


def read_report(run_dir: Path, most_failures: int) -> Report:
    """Read a scored run folder. Raises BifronsError where results.jsonl or summary.json is missing or odd."""
    for name in ("results.jsonl", "summary.json"):
        if not (run_dir / name).is_file():
            raise BifronsError(f"{run_dir} has no {name}; accepted: a run that `bifrons eval score` scored")
    summary = _object(read_json(run_dir / "summary.json"), run_dir / "summary.json")
    run = (
        _object(read_json(run_dir / "run.json"), run_dir / "run.json")
        if (run_dir / "run.json").is_file()
        else {}
    )
    recipe = run.get("recipe") if isinstance(run.get("recipe"), Mapping) else {}
    assert isinstance(recipe, Mapping)
    rows = _results(run_dir / "results.jsonl")
    scores, overall = _scores(summary, run_dir / "summary.json")
    detector = _detector(run_dir, summary, run)
    obstacles = _obstacles(detector, recipe, rows, len(summary.get("not_scored", ())))
    model = recipe.get("model")
    wrong = [row for row in rows if not row["correct"]]
    return Report(
        model=model,
        suite=recipe.get("suite"),
        detector=str(detector.get("name", "unknown")),
        obstacles=obstacles,
        scores=scores,
        overall=overall,
        level=float(summary.get("interval_level", 0.95)),
        correct_prompts=float(summary.get("correct_prompts", 0)),
        absent=tuple(tag for tag in TAGS if tag not in {score.tag for score in scores}),
        failures=tuple(_failure(row, _roots(run_dir, run)) for row in spread(wrong, most_failures)),
        failed=len(wrong),
        not_scored=tuple(_told(item) for item in summary.get("not_scored", ())),
        recipe=_recipe(run, recipe),
        published=of_model(model, PUBLISHED) if model and not obstacles else None,
        reproduced=of_model(model, REPRODUCED) if model and not obstacles else None,
        others=() if obstacles else PUBLISHED,
    )


def spread(rows: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """At most `most` rows: the kinds take turns, and each kind's rows are evenly spaced over its own."""
    kinds = {tag: [row for row in rows if row["tag"] == tag] for tag in TAGS}
    shares = dict.fromkeys(kinds, 0)
    left = min(most, len(rows))
    while left:
        for tag, mine in kinds.items():
            if left and shares[tag] < len(mine):
                shares[tag] += 1
                left -= 1
    return [mine[i * len(mine) // shares[tag]] for tag, mine in kinds.items() for i in range(shares[tag])]


def told_apart(a: Score, b: Score) -> bool:
    """Whether the interval of a's and b's difference leaves out 0 (independent samples; Zou and Donner's
    MOVER, 2008, Statistics in Medicine 27:1693)."""
    if a.share < b.share:
        a, b = b, a
    return a.share - b.share > math.hypot(a.share - a.interval.low, b.interval.high - b.share)


def verdict(score: Score, value: float) -> str:
    """A figure of someone else, without an interval of its own, against ours."""
    if score.interval.low <= value <= score.interval.high:
        return "not told apart"
    return "ours is higher" if score.share > value else "ours is lower"


def percent(share: float) -> str:
    return f"{share:.1%}"


def span(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}%"


def _scores(summary: Mapping[str, Any], where: Path) -> tuple[tuple[Score, ...], Score]:
    try:
        kinds = summary["kinds"]
        plain = [
            Score(
                tag,
                kind["score"],
                Interval(*kind["interval"]),
                kind["correct"],
                kind["images"],
                kind["prompts"],
            )
            for tag in TAGS
            if (kind := kinds.get(tag))
        ]
        overall = Score(
            "overall",
            summary["overall"],
            Interval(*summary["overall_interval"]),
            sum(score.correct for score in plain),
            summary["images"],
            summary["prompts"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BifronsError(f"{where} lacks {error}; accepted: what `bifrons eval score` writes") from error
    scores = []
    for score in plain:
        alike = tuple(other.tag for other in plain if other is not score and not told_apart(score, other))
        scores.append(replace(score, alike=alike))
    return tuple(scores), overall


def _detector(run_dir: Path, summary: Mapping[str, Any], run: Mapping[str, Any]) -> Mapping[str, Any]:
    """{"name", "comparable"} as the detecting stage left it, or nothing for detections from elsewhere."""
    source = run_dir / "detect.json"
    stage = _object(read_json(source), source) if source.is_file() else {}
    for found in (summary.get("detector"), stage.get("detector", stage), run.get("detector")):
        if isinstance(found, Mapping) and "name" in found:
            return found
    return {}


def _obstacles(
    detector: Mapping[str, Any], recipe: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], missing: int
) -> tuple[str, ...]:
    """Whoever painted them: official detections of pictures for all of the official prompts are GenEval."""
    found = []
    if not detector:
        found.append("the detector is not known")
    elif detector.get("comparable") is not True:
        found.append("the detector is not GenEval's official Mask2Former with OpenAI's CLIP ViT-L/14")
    if recipe.get("suite", "geneval") != "geneval":
        found.append(f"the suite is {recipe['suite']}, not GenEval's prompts")
    elif recipe.get("limit"):
        found.append(f"only {recipe['limit']} prompts of the suite were painted")
    elif not is_official(_prompts_sha256(rows)):
        found.append("the prompts that were scored are not GenEval's, all of them, in their order")
    if missing:
        found.append(f"something was missing or could not be scored ({missing}, listed below)")
    return tuple(found)


def _prompts_sha256(rows: Sequence[Mapping[str, Any]]) -> str:
    """sha256 of the prompts file that the pictures' folders, in order, have the lines of."""
    folders: dict[str, str] = {}
    for row in rows:
        folders.setdefault(row["filename"].split("/")[0], row["metadata"])
    return lines_sha256([json.loads(folders[name]) for name in sorted(folders)])


def _recipe(run: Mapping[str, Any], recipe: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    shown = {
        **recipe,
        **{key: run[key] for key in ("model_fingerprint", "fingerprint", "source") if key in run},
    }
    return tuple(
        (key.replace("_", " "), "none" if value is None else str(value)) for key, value in shown.items()
    )


def _roots(run_dir: Path, run: Mapping[str, Any]) -> list[Path]:
    source = run.get("source")
    return [run_dir / "images", *([Path(source)] if isinstance(source, str) else []), run_dir]


def _results(path: Path) -> list[Mapping[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            texts = [row[key] for key in ("filename", "tag", "prompt", "reason")]
            details, metadata = json.loads(row["details"]), json.loads(row["metadata"])
            whole = (
                isinstance(details, dict) and isinstance(metadata, dict) and isinstance(row["correct"], bool)
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BifronsError(f"{path} line {number} is no results row: {error!r}") from error
        if not whole or row["tag"] not in TAGS or not all(isinstance(text, str) for text in texts):
            raise BifronsError(f"{path} line {number} is no results row; accepted: what the scorer writes")
        rows.append(row)
    return rows


def _failure(row: Mapping[str, Any], roots: Sequence[Path]) -> Failure:
    boxes = [(cls, box) for cls, found in json.loads(row["details"]).items() for box in found]
    picture = next((root / row["filename"] for root in roots if (root / row["filename"]).is_file()), None)
    return Failure(row["filename"], row["tag"], row["prompt"], row["reason"], tuple(boxes), picture)


def _told(item: Any) -> str:
    if not isinstance(item, Mapping):
        return str(item)
    place = item.get("filename") or f"detections, line {item.get('line')}"
    return f"{place}: {item.get('reason')}"


def _object(content: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise BifronsError(f"{path} holds no JSON object")
    return content
