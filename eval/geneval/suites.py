"""Prompt suites: GenEval's own, and sentences of the world of shapes in the same schema."""

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from ...blocks.errors import BifronsError, OptionError
from ...blocks.files import decode_text, read_bounded
from ...blocks.json_config import TABLE_BYTES, decode_json
from ...blocks.vocabulary import Vocabulary
from ...nano.world.catalog import things
from ...nano.world.levels import HARD_KINDS, sample_hard_case
from ...nano.world.sentences import sample_case
from ...nano.world.shapes import SHAPES
from .official import draw_prompts
from .schema import TAGS, read_row

OFFICIAL_COUNTS = dict(zip(TAGS, (80, 99, 80, 94, 100, 100), strict=True))
"""Prompts of each kind in GenEval's file, which has them in this order."""
OFFICIAL_SHA256 = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"

Row = dict[str, Any]


def shapes_prompts(seed: int) -> list[Row]:
    """553 different sentences about shapes, with as many of each kind as GenEval, in its order."""
    rng, rows, prompts = Random(seed), [], set()
    for kind, count in OFFICIAL_COUNTS.items():
        target = len(rows) + count
        while len(rows) < target:
            row = sample_case(kind, rng, "any").metadata
            if row["prompt"] not in prompts:
                prompts.add(row["prompt"])
                rows.append(row)
    return rows


def hard_prompts(seed: int) -> list[Row]:
    """300 different sentences about shapes that are harder than GenEval's, 100 of each kind."""
    rng, rows = Random(seed), {}
    for number, kind in enumerate(HARD_KINDS, 1):
        while len(rows) < 100 * number:
            row = sample_hard_case(kind, rng).metadata
            rows.setdefault(row["prompt"], row)
    return list(rows.values())


def geneval_prompts(prompts: Path | None = None) -> list[Row]:
    """GenEval's 553 rows, or those of a file in the same schema; see `is_official`.

    Raises BifronsError for a file that can't be read, or a line that the scorer could not use.
    """
    if prompts is None:
        rows = draw_prompts()
        if not is_official(lines_sha256(rows)):
            raise BifronsError(
                f"numpy {np.__version__} draws other prompts than GenEval's; accepted: numpy 1.26 or 2, or "
                "--prompts FILE, prompts/evaluation_metadata.jsonl of djghosh13/geneval on GitHub"
            )
        return rows
    try:
        content = read_bounded(prompts, TABLE_BYTES)
    except OSError as error:
        raise BifronsError(
            f"{prompts} can't be read ({error.strerror}); accepted: a .jsonl file with one prompt and its "
            "metadata a line"
        ) from error
    with suppress(ValueError):  # of what is no text, `parse_prompts` names the line
        content = decode_text(content).encode()
    return parse_prompts(content, str(prompts))


def suite_for(vocabulary: Vocabulary | None) -> str:
    """The suite where none is named: `shapes` for a model that knows nothing else, or else `geneval`."""
    return "shapes" if vocabulary is not None and {*vocabulary.things} <= {*SHAPES} else "geneval"


def detector_for(rows: Iterable[Row], vocabulary: Vocabulary | None = None) -> str | None:
    """The kind of detector where none is named: that of the world of things for pictures by a model that
    knows its things, that of shapes where the prompts name nothing else, or else GenEval's own; None for rows
    that are not GenEval's.
    """
    classes = {clause["class"] for row in rows for clause in row.get("include", ())}
    if not classes:
        return None
    if vocabulary is not None and {*vocabulary.things} & ({*things()} - {*SHAPES}):
        return "world"
    return "shapes" if classes <= {*SHAPES} else "mask2former-official"


def is_official(sha256: str) -> bool:
    """Whether lines with this `lines_sha256` are GenEval's own prompts, and all of them."""
    return sha256 == OFFICIAL_SHA256


def to_jsonl(rows: list[Row]) -> bytes:
    """Rows as a `.jsonl` file, formatted as the official file."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def lines_sha256(rows: list[Row]) -> str:
    """sha256 of `to_jsonl`; for GenEval's own prompts, that of the official file."""
    return hashlib.sha256(to_jsonl(rows)).hexdigest()


def parse_prompts(content: bytes, name: str) -> list[Row]:
    """Rows of a GenEval prompts file. Raises BifronsError with the number of a line that can't be scored."""
    return parse_rows(content, name, parse_metadata)


def parse_rows(content: bytes, name: str, parse: Callable[[bytes, str], Row] | None = None) -> list[Row]:
    """Rows of a prompts file of any suite, one a line; blank lines are skipped.

    parse: from a line and its place to a row; by default any object with a text "prompt" is one. Raises
    BifronsError for an empty file or a line that is no row.
    """
    rows = [
        (parse or parse_row)(line, f"{name} line {number}")
        for number, line in enumerate(content.splitlines(), 1)
        if line.strip()
    ]
    if not rows:
        raise BifronsError(f"{name} is empty; accepted: one prompt with its metadata a line")
    return rows


def parse_row(line: bytes, where: str) -> Row:
    """A JSON object with a text "prompt". Raises BifronsError for anything else; `where` names it there."""
    try:
        row = decode_json(line)
    except ValueError as error:
        raise BifronsError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"]:
        raise BifronsError(f"{where} has no 'prompt'; accepted: an object with a text 'prompt'")
    return row


def parse_metadata(line: bytes, where: str) -> Row:
    """One line of GenEval's metadata. Raises BifronsError for one that can't be scored."""
    try:
        row = decode_json(line)
    except ValueError as error:
        raise BifronsError(f"{where} is not JSON: {error}") from error
    read_row({"filename": where, "metadata": row, "boxes": {}, "colors": {}})
    return row


def select_prompts(total: int, limit: int | None) -> list[int]:
    """The indices of the prompts of a limited run: evenly spaced, so that all kinds occur.

    Raises OptionError when the limit exceeds the suite.
    """
    if limit is None:
        return list(range(total))
    if not 1 <= limit <= total:
        raise OptionError(f"limit is {limit}; accepted: 1 to {total}, the suite's prompts")
    return [(2 * i + 1) * total // (2 * limit) for i in range(limit)]
