"""The rows of a batch: read one by one from a file, with what is wrong with a row kept as its problem."""

import csv
import hashlib
import json
import os
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..blocks.errors import BifronsError, OptionError, check_integer, is_name, shown
from ..blocks.image_prompts import MAX_SEED
from ..blocks.json_config import parse_json
from ..eval.atomic_io import LINE_BYTES, read_lines
from ..eval.row_files import read_rows

KINDS = ".jsonl, .ndjson, .csv, .tsv (each also .gz) or .parquet, or a folder of .parquet files"
MAX_ROWS = 10_000_000
"""Most rows of a run: about 100 bytes are held of each id to find one that is there twice."""

Content = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A row: its number from 0 in the file, its id and seed. `content` is what the task needs, `options` are
    those of which all rows of a batch have the same; `problem` is why it can't be done."""

    number: int
    id: str
    seed: int = 0
    content: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[tuple[str, Any], ...] = ()
    problem: str | None = None

    def digest(self) -> bytes:
        """sha256 of all that its result depends on."""
        parts = [self.id, self.seed, self.options, self.problem]
        parts += [
            (k, hashlib.sha256(v).hexdigest() if isinstance(v, bytes) else v)
            for k, v in sorted(self.content.items())
        ]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).digest()


Check = Callable[[Content], tuple[Content, Content]]
"""Splits a row into `content` and `options`, both checked. Raises BifronsError."""


@dataclass(frozen=True)
class Source:
    """A file of rows, and how each row is checked.

    columns: with their types, beside id and seed. seed: that of rows without one, see `row_seed`.
    """

    path: Path
    columns: Mapping[str, type]
    check: Check
    seed: int

    def rows(self) -> Iterator[Row]:
        """All rows, in order. Raises BifronsError where the file can't be read further."""
        for number, (content, problem) in enumerate(self._contents()):
            if number == MAX_ROWS:
                raise OptionError(f"{self.path} has more than the accepted {MAX_ROWS:,} rows; split it")
            yield self._row(number, content, problem)

    def _row(self, number: int, raw: Mapping[str, Any], problem: str | None) -> Row:
        name, seed = str(number + 1), None
        try:
            if problem is not None:
                return Row(number, f"row {name}", problem=problem)
            given = {key: value for key, value in raw.items() if value is not None}
            name = _id(given.pop("id", name))
            for key in given:
                if key not in self.columns and key != "seed":
                    accepted = ", ".join(("id", "seed", *self.columns))
                    raise OptionError(f"{shown(key)} is not known; accepted: {accepted}")
            seed = given.pop("seed", None)
            seed = row_seed(self.seed, name) if seed is None else check_integer("seed", seed, 0, MAX_SEED)
            content, options = self.check(given)
        except BifronsError as error:
            return Row(number, name, seed or 0, problem=str(error))
        return Row(number, name, seed, content, tuple(sorted(options.items())))

    def _contents(self) -> Iterator[tuple[Mapping[str, Any], str | None]]:
        """The columns of each row, or why it can't be read."""
        name = self.path.name.lower().removesuffix(".gz")
        if name.endswith((".jsonl", ".ndjson")):
            yield from _json_lines(self.path)
        elif name.endswith((".csv", ".tsv")):
            yield from self._cells()
        elif name.endswith(".parquet") or os.path.isdir(self.path):
            for _, content in read_rows(self.path):
                yield content, None
        else:
            raise OptionError(f"{self.path} is of an unknown kind; accepted: {KINDS}")

    def _cells(self) -> Iterator[tuple[Mapping[str, Any], str | None]]:
        before = csv.field_size_limit(LINE_BYTES)
        place = 1
        try:
            lines = (
                line.decode("utf-8-sig" if number == 1 else "utf-8") for number, line in read_lines(self.path)
            )
            first = next(lines, "")
            delimiter = max(",;\t", key=first.count)
            header = [cell.strip().lower() for cell in next(csv.reader([first], delimiter=delimiter), [])]
            if len(set(header)) < len(header):
                raise OptionError(f"{self.path} line 1 names a column twice: {shown(header)}")
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            for cells in reader:
                place = reader.line_num + 1
                if len(cells) > len(header):
                    yield {}, f"it has {len(cells)} cells, the header {len(header)}"
                elif any(cell.strip() for cell in cells):
                    yield self._typed(dict(zip(header, cells, strict=False)))
        except (csv.Error, UnicodeDecodeError) as error:
            raise BifronsError(f"{self.path} can't be read as CSV after line {place}: {error}") from error
        finally:
            csv.field_size_limit(before)

    def _typed(self, cells: Mapping[str, str]) -> tuple[Mapping[str, Any], str | None]:
        """Cells with numbers for columns of numbers; those left empty are not given."""
        typed: Content = {}
        for key, cell in cells.items():
            kind = int if key == "seed" else self.columns.get(key, str)
            try:
                if cell.strip():
                    typed[key] = kind(cell.strip())
            except ValueError:
                return {}, f"{key} is {shown(cell)}; accepted: a number"
        return typed, None


def _json_lines(path: Path) -> Iterator[tuple[Mapping[str, Any], str | None]]:
    for number, line in read_lines(path):
        line = line.removeprefix(BOM_UTF8) if number == 1 else line
        if not line.strip():
            continue
        try:
            content = parse_json(line, f"line {number}", BifronsError)
        except BifronsError as error:
            yield {}, str(error)
            continue
        if isinstance(content, dict):
            yield content, None
        else:
            yield {}, f"line {number} is {shown(content)}; accepted: an object"


def _id(value: Any) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not is_name(text, 200) or not text:
        raise OptionError(f"id is {shown(value)}; accepted: a whole number or a text of up to 200 characters")
    return text


def row_seed(seed: int, name: str) -> int:
    """The seed of a row without one, from that of the run and the row's id: the same wherever the row
    stands."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") >> 11


def check_rows(rows: Iterator[Row], where: Path, shard_size: int) -> tuple[list[bytes], list[Row], int]:
    """Read all rows once: a digest of each shard of so many rows, up to ten rows with problems, and how many
    have one.

    Raises BifronsError for ids that are there twice and where no row can be done.
    """
    seen: set[bytes] = set()
    shards: list[bytes] = []
    bad: list[Row] = []
    count, problems, shard = 0, 0, hashlib.sha256()
    for count, row in enumerate(rows, 1):
        key = hashlib.blake2b(row.id.encode(), digest_size=16).digest()
        if key in seen:
            raise OptionError(
                f"{where} row {row.number + 1} has the id {row.id!r} of an earlier row; accepted: ids that "
                "are there once (rows without one have their number as id)"
            )
        seen.add(key)
        problems += row.problem is not None
        if row.problem is not None and len(bad) < 10:
            bad.append(row)
        shard.update(row.digest())
        if count % shard_size == 0:
            shards.append(shard.digest())
            shard = hashlib.sha256()
    if count % shard_size:
        shards.append(shard.digest())
    if not count:
        raise OptionError(f"{where} holds no rows")
    if problems == count:
        raise OptionError(f"{where} has no row that can be done; row {bad[0].number + 1}: {bad[0].problem}")
    return shards, bad, count
