"""From a file of detections to results.jsonl and summary.json."""

import gzip
import json
import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from ..blocks.errors import BifronsError
from .scoring import BadLine, Summary, intervals, results_row, score_row, summarize

log = logging.getLogger(__name__)
LEVEL = 0.95


def score_file(detections: Path | str, output: Path | str) -> Summary:
    """Score a file of detections, one row (see `score_row`) a line, into the folder `output`.

    detections: `.jsonl` or `.jsonl.gz`, read line by line. A line that can't be scored (no JSON, malformed,
    a filename that an earlier line had) is logged as a warning, listed in the summary's `bad_lines` and in
    summary.json, and scored as nothing; blank lines are passed over. results.jsonl (the published form) and
    summary.json appear whole or not at all, and replace what had these names.

    Raises BifronsError when the file is missing, broken off or of another kind, or no line can be scored.
    """
    source, folder = Path(detections), Path(output)
    results, digest = folder / "results.jsonl", folder / "summary.json"
    if source.resolve() in (results.resolve(), digest.resolve()):
        raise BifronsError(f"{source} would be replaced by its own results; accepted: another output folder")
    if folder.exists() and not folder.is_dir():
        raise BifronsError(f"output {folder} is a file; accepted: a folder, which may be new")
    lines = _lines(source)
    first = next(lines, None)  # opened before the folder is made: a wrong name leaves nothing behind
    if first is None:
        raise BifronsError(f"{source} is empty; accepted: one row of detections a line")
    folder.mkdir(parents=True, exist_ok=True)
    bad: list[BadLine] = []
    kept: list[dict[str, Any]] = []
    filenames: dict[str, int] = {}
    with _whole(digest) as digest_out, _whole(results) as results_out:  # the last opened is in place first
        for number, raw in _chain(first, lines):
            try:
                scored = _score_line(number, raw, filenames)
            except BifronsError as error:
                log.warning("%s line %d is not scored: %s", source, number, error)
                bad.append(BadLine(number, str(error)))
                continue
            results_out.write(json.dumps(scored) + "\n")
            kept.append({key: scored[key] for key in ("tag", "correct", "metadata")})
        if not kept:
            raise BifronsError(f"{source}: no line could be scored; line {bad[0].line}: {bad[0].reason}")
        summary = replace(summarize(kept), intervals=intervals(kept, LEVEL), bad_lines=tuple(bad))
        digest_out.write(json.dumps(summary_json(summary), indent=2) + "\n")
        digest.unlink(missing_ok=True)  # an old summary must never lie beside new results
    return summary


def summary_json(summary: Summary) -> dict[str, Any]:
    """The summary as plain JSON values; scores and intervals are shares, 0 to 1."""
    return {
        "overall": summary.overall,
        "overall_interval": list(summary.intervals.get("overall", ())),
        "interval_level": LEVEL,
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
        "not_scored": [{"line": bad.line, "reason": bad.reason} for bad in summary.bad_lines],
    }


def _score_line(number: int, raw: bytes, filenames: dict[str, int]) -> dict[str, Any]:
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BifronsError(f"is not JSON: {error}") from error
    verdict = score_row(row)
    earlier = filenames.setdefault(row["filename"], number)
    if earlier != number:
        raise BifronsError(f"row {row['filename']!r}: 'filename' was scored on line {earlier} already")
    return results_row(row, verdict)


def _lines(source: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank."""
    if not source.name.endswith((".jsonl", ".jsonl.gz")):
        raise BifronsError(f"{source} is of an unknown kind; accepted: .jsonl or .jsonl.gz")
    number = 0
    try:
        with gzip.open(source, "rb") if source.suffix == ".gz" else source.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                if raw.strip():
                    yield number, raw
    except (OSError, EOFError, zlib.error) as error:
        raise BifronsError(f"{source} can't be read after line {number}: {error}") from error


def _chain(first: tuple[int, bytes], rest: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    yield first
    yield from rest


@contextmanager
def _whole(path: Path) -> Iterator[IO[str]]:
    """Write beside `path` and rename when all is on the disk; after an error nothing is left."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the rename itself is on the disk only once the folder is
        handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
