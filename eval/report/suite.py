"""The report of a judged run, from two templates: suite.md and suite.html, which needs no other file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...blocks.errors import BifronsError
from ...blocks.json_config import parse_json
from ..atomic_io import read_json, read_lines, write_file
from ..geneval.intervals import Interval
from .render import percent, plain, span, template_environment, thumbnail

MAX_PICTURES = 8
"""Pictures shown of those with the lowest and of those with the highest scores."""


def write_suite_report(run_dir: Path) -> tuple[Path, Path]:
    """Write report.md and report.html into a judged run's folder from its results.jsonl and summary.json.

    Raises BifronsError where the run is not scored, or the disk refuses. Returns both paths.
    """
    for name in ("summary.json", "results.jsonl"):
        if not (run_dir / name).is_file():
            raise BifronsError(f"{run_dir} has no {name}; accepted: a run that `bifrons eval score` scored")
    summary = read_json(run_dir / "summary.json")
    rows = [
        parse_json(line, f"{run_dir / 'results.jsonl'} line {number}", BifronsError)
        for number, line in read_lines(run_dir / "results.jsonl")
    ]
    ranked = sorted((row for row in rows if row["items"]), key=_value)
    worst = ranked[:MAX_PICTURES]
    best = [row for row in ranked[::-1][:MAX_PICTURES] if row not in worst]
    environment = template_environment()
    environment.filters.update(percent=percent, plain=plain, span=_span, thumbnail=thumbnail)
    values = {
        "summary": summary,
        "rows": _table(summary),
        "settings": _settings(summary),
        "shown": (("Lowest scores", worst), ("Highest scores", best)),
        "images": run_dir / "images",
        "value": _value,
    }
    written = run_dir / "report.md", run_dir / "report.html"
    for path in written:
        name = f"suite{path.suffix}.j2"
        write_file(path, environment.get_template(name).render(values).encode())
    return written


def _value(row: Mapping[str, Any]) -> float:
    """A picture's own score: its first item."""
    return float(row["items"][0][1])


def _span(interval: Sequence[float]) -> str:
    return span(Interval(*interval))


def _table(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The overall score, if there is one, then the groups."""
    rows = [(name, group) for name, group in summary["groups"].items()]
    if summary["overall"] is None:
        return rows
    overall = {
        "score": summary["overall"],
        "interval": summary["overall_interval"],
        "items": summary["images"],
        "prompts": summary["prompts"],
    }
    return [("overall", overall), *rows]


def _settings(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Recipe, judge and versions, a line each."""
    named = {
        **summary["recipe"],
        "model_fingerprint": summary["model_fingerprint"],
        **{f"judge_{name}": value for name, value in summary["judge"].items()},
        **{f"judge's_{name}": value for name, value in summary["wording"].items()},
        **{f"version_of_{name}": value for name, value in summary["software"].items()},
    }
    return [
        (name.replace("_", " "), "none" if value is None else str(value)) for name, value in named.items()
    ]
