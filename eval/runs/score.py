"""From a file of detections to results.jsonl and summary.json."""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from ...blocks.errors import BifronsError
from ...blocks.json_config import decode_json
from ..atomic_io import atomic_file, disk_errors, make_folder, read_lines
from ..geneval.breakdown import breakdown
from ..geneval.intervals import METHOD
from ..geneval.options import OFFICIAL, ScorerOptions
from ..geneval.scoring import BadLine, Summary, intervals, results_row, score_row, summarize

log = logging.getLogger(__name__)
LEVEL = 0.95
SCHEMA = 2
"""Version of summary.json; files of before it had a number are version 1."""


def score_file(
    detections: Path | str,
    output: Path | str,
    not_detected: Sequence[Mapping[str, str]] = (),
    options: ScorerOptions = OFFICIAL,
    official_reasons: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Summary:
    """Score a file of detections, one row (see `score_row`) a line, into the file `output` and summary.json.

    detections: `.jsonl` or `.jsonl.gz`, read line by line. A line that can't be scored (no JSON, malformed,
    the filename of an earlier line) is logged as a warning, listed in the summary's `bad_lines` and in
    summary.json, and left out of the score; blank lines are skipped.
    output: a name that ends in .jsonl, in a folder that may be new; gets the published format. It and the
    summary.json beside it are written atomically, and replace existing files.
    not_detected: {filename, reason} of images without detections, for the `not_scored` of summary.json.
    options, official_reasons: see `score_row`. about: what else summary.json says of the run.

    Raises BifronsError when the file is missing, truncated or of another type, or no line can be scored.
    """
    source, results = Path(detections), Path(output)
    summary_path = results.with_name("summary.json")
    if results.suffix != ".jsonl" or os.path.isdir(results):
        raise BifronsError(f"output {results} names no results file; accepted: a name that ends in .jsonl")
    if os.path.exists(source) and os.path.realpath(source) in map(os.path.realpath, (results, summary_path)):
        raise BifronsError(f"{source} would be replaced by its own results; accepted: another output")
    lines = _lines(source)
    first = next(lines, None)  # before the folder is made, so that a wrong name leaves nothing behind
    if first is None:
        raise BifronsError(f"{source} is empty; accepted: one row of detections a line")
    make_folder(results.parent)
    # The inner one, the results, is in place first.
    with atomic_file(summary_path) as summary_out, atomic_file(results) as results_out:
        rows, bad_lines = _score_lines(source, chain([first], lines), results_out, options, official_reasons)
        if not rows:
            raise BifronsError(
                f"{source}: no line could be scored; line {bad_lines[0].line}: {bad_lines[0].reason}"
            )
        summary = replace(summarize(rows), intervals=intervals(rows, LEVEL), bad_lines=tuple(bad_lines))
        content = summary_json(summary, breakdown(rows), options, about or {})
        content["not_scored"] += [dict(item) for item in not_detected]
        summary_out.write((json.dumps(content, indent=2) + "\n").encode())
        with disk_errors(f"replace {summary_path}"):
            summary_path.unlink(missing_ok=True)  # no old summary may lie beside new results
    return summary


def _score_lines(
    source: Path,
    lines: Iterable[tuple[int, bytes]],
    results_out: BinaryIO,
    options: ScorerOptions,
    official_reasons: bool,
) -> tuple[list[dict[str, Any]], list[BadLine]]:
    """Write a results row for each line; returns what the summary needs of them, and what was not scored."""
    rows: list[dict[str, Any]] = []
    bad_lines: list[BadLine] = []
    filenames: dict[str, int] = {}
    for number, raw in lines:
        try:
            scored = _score_line(number, raw, filenames, options, official_reasons)
        except BifronsError as error:
            log.warning("%s line %d is not scored: %s", source, number, error)
            bad_lines.append(BadLine(number, str(error)))
            continue
        results_out.write((json.dumps(scored) + "\n").encode())
        rows.append({key: scored[key] for key in ("tag", "correct", "metadata")})
    return rows, bad_lines


def summary_json(
    summary: Summary,
    parts: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
    options: ScorerOptions = OFFICIAL,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The summary as plain JSON values; scores and intervals are shares, 0 to 1.

    parts: from `breakdown`. about: of the run: recipe, fingerprints, detector, versions. It holds nothing
    that depends on when or how fast the run was made, so that equal runs have equal summaries.
    """
    return {
        "schema": SCHEMA,
        "overall": summary.overall,
        "overall_interval": list(summary.intervals.get("overall", ())),
        "interval_level": LEVEL,
        "interval_method": METHOD,
        "correct_images": summary.correct_images,
        "correct_prompts": summary.correct_prompts,
        "images": summary.images,
        "prompts": summary.prompts,
        "kinds": {
            tag: {
                "score": kind.score,
                "interval": list(summary.intervals.get(tag, ())),
                "correct": kind.correct,
                "images": kind.images,
                "prompts": kind.prompts,
            }
            for tag, kind in summary.kinds.items()
        },
        "breakdown": {
            part: {
                name: dict(zip(("correct", "images", "prompts"), counts, strict=True))
                for name, counts in names.items()
            }
            for part, names in (parts or {}).items()
        },
        "options": asdict(options),
        **(about or {}),
        "not_scored": [{"line": bad.line, "reason": bad.reason} for bad in summary.bad_lines],
    }


def _score_line(
    number: int, raw: bytes, filenames: dict[str, int], options: ScorerOptions, official_reasons: bool
) -> dict[str, Any]:
    try:
        row = decode_json(raw)
    except ValueError as error:
        raise BifronsError(f"is not JSON: {error}") from error
    verdict = score_row(row, options, official_reasons)
    earlier = filenames.setdefault(row["filename"], number)
    if earlier != number:
        raise BifronsError(f"row {row['filename']!r}: 'filename' was scored on line {earlier} already")
    return results_row(row, verdict)


def _lines(source: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers."""
    if not source.name.endswith((".jsonl", ".jsonl.gz")):
        raise BifronsError(f"{source} is of an unknown kind; accepted: .jsonl or .jsonl.gz")
    yield from ((number, raw) for number, raw in read_lines(source) if raw.strip())
