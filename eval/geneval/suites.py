"""Prompt suites: GenEval's own, and sentences of the small world in the same schema."""

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from ...blocks.errors import BifronsError, OptionError
from ...blocks.files import decode_text, read_bounded
from ...blocks.json_config import TABLE_BYTES, decode_json
from ...nano.world.levels import HARD_KINDS, sample_hard_case
from ...nano.world.sentences import sample_case
from ..atomic_io import make_folder, read_file, write_file
from .schema import TAGS, read_row

OFFICIAL_COUNTS = dict(zip(TAGS, (80, 99, 80, 94, 100, 100), strict=True))
"""Prompts of each kind in GenEval's file, which has them in this order."""
OFFICIAL_SHA256 = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
OFFICIAL_URL = (
    "https://raw.githubusercontent.com/djghosh13/geneval/"
    "af4902f24d3ca90ebbb446dd9891a59e0f82725f/prompts/evaluation_metadata.jsonl"
)
_MAX_BYTES = 64 * 2**20

Row = dict[str, Any]


def shapes_prompts(seed: int) -> list[Row]:
    """553 different sentences about the small world, with as many of each kind as GenEval, in its order.

    They are drawn without restriction: some (a tenth of the colourings, for example) are combinations held
    out from janus-nano's training.
    """
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
    """300 different sentences about the small world that are harder than GenEval's, 100 of each kind."""
    rng, rows = Random(seed), {}
    for number, kind in enumerate(HARD_KINDS, 1):
        while len(rows) < 100 * number:
            row = sample_hard_case(kind, rng).metadata
            rows.setdefault(row["prompt"], row)
    return list(rows.values())


def geneval_prompts(prompts: Path | None = None, cache: Path | None = None) -> list[Row]:
    """GenEval's 553 rows, from the file `prompts` or fetched once into `cache` (default: `cache_folder`).

    A fetched file must have the official sha256. `prompts` may be another file in the same schema; see
    `is_official`. Raises BifronsError where there is neither file nor network, or for a line that the scorer
    could not use.
    """
    if prompts is None:
        return parse_prompts(_fetched(cache or cache_folder()), "GenEval's prompts")
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


def cache_folder() -> Path:
    """`$BIFRONS_CACHE`, or `bifrons` in the user's cache folder."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BIFRONS_CACHE") or Path(user_cache) / "bifrons")


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


def _fetched(cache: Path) -> bytes:
    path = cache / "geneval" / "evaluation_metadata.jsonl"
    if os.path.isfile(path):
        content = read_file(path)
        if hashlib.sha256(content).hexdigest() == OFFICIAL_SHA256:
            return content
        raise BifronsError(f"{path} is not the official file; remove it to fetch it anew")
    try:
        with urllib.request.urlopen(OFFICIAL_URL, timeout=30) as stream:
            content = stream.read(_MAX_BYTES)
    except (urllib.error.URLError, OSError) as error:
        why = getattr(error, "reason", None) or error
        raise BifronsError(
            f"GenEval's prompts could not be fetched ({why}). Get prompts/evaluation_metadata.jsonl of the "
            f"repository djghosh13/geneval on GitHub and name it with --prompts FILE, or put it at {path}; "
            "offline, the suite 'shapes' needs no file"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != OFFICIAL_SHA256:
        raise BifronsError(f"{OFFICIAL_URL} has the sha256 {digest}; accepted: {OFFICIAL_SHA256}")
    make_folder(path.parent)
    write_file(path, content)
    return content
