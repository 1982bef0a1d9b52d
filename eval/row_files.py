"""The rows of a benchmark's file: .json, .jsonl, .tsv with pictures in base64, or .parquet."""

import base64
import binascii
import csv
import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..blocks.errors import BifronsError
from ..blocks.files import open_regular
from ..blocks.json_config import TABLE_BYTES, parse_json, read_value
from .atomic_io import LINE_BYTES, make_folder, read_lines, write_file

_KINDS = ".json, .jsonl, .tsv or .parquet"
_PICTURES = ("image", "imgname", "image_path", "img_path")
_LONGEST_NAME = 1000
"""Longer texts are pictures in base64."""


def read_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a file, or of a folder's .parquet files in order, each with its place for errors.

    A .json holds a list, or an object with one as its "data". POPE's .json files hold a row a line. Raises
    BifronsError.
    """
    if path.is_dir():
        parts = sorted(path.glob("*.parquet"))
        if not parts:
            raise BifronsError(f"{path} holds no .parquet file; accepted: such a folder, or a file {_KINDS}")
        for part in parts:
            yield from _parquet(part)
    elif path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix == ".tsv":
        yield from _tsv(path)
    elif path.suffix == ".jsonl" or (path.suffix == ".json" and _has_a_row_a_line(path)):
        for number, line in read_lines(path):
            if line.strip():
                where = f"{path} line {number}"
                yield where, _object(parse_json(line, where, BifronsError), where)
    elif path.suffix == ".json":
        content = read_value(path, TABLE_BYTES, BifronsError)
        rows = content.get("data") if isinstance(content, dict) else content
        if not isinstance(rows, list):
            raise BifronsError(
                f"{path} is no list; accepted: a list of objects, or an object with one as data"
            )
        for number, row in enumerate(rows, 1):
            yield f"{path} entry {number}", _object(row, f"{path} entry {number}")
    else:
        raise BifronsError(f"{path} is of an unknown kind; accepted: {_KINDS}")


def _object(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise BifronsError(f"{where} is no object")
    return row


def _has_a_row_a_line(path: Path) -> bool:
    lines = (line for _, line in read_lines(path) if line.strip())
    first, second = next(lines, b"").strip(), next(lines, b"").strip()
    if not (first.startswith(b"{") and first.endswith(b"}")):
        return False
    return second.startswith(b"{") if second else b'"data"' not in first


def _tsv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    before = csv.field_size_limit(LINE_BYTES)
    try:
        with open_regular(path) as raw, io.TextIOWrapper(io.BufferedReader(raw), "utf-8", newline="") as text:
            reader = csv.DictReader(text, delimiter="\t")
            for row in reader:
                yield f"{path} line {reader.line_num}", row
    except (csv.Error, UnicodeDecodeError) as error:
        raise BifronsError(f"{path} is no table of tab-separated values: {error}") from error
    except OSError as error:
        raise BifronsError(f"{path} can't be read: {error.strerror or error}") from error
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise BifronsError(".parquet files need the package pyarrow: pip install 'bifrons[eval]'") from error
    try:
        with open_regular(path) as stream, parquet.ParquetFile(stream) as file:
            number = 0
            for batch in file.iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise BifronsError(f"{path} can't be read as Parquet: {error}") from error


class Pictures:
    """The pictures of rows as files: those in the user's folder, and copies of those within the rows."""

    def __init__(self, images: Path, copies: Path) -> None:
        self._images, self._copies = images, copies
        self._by_index: dict[str, Path] = {}

    def of(self, row: Mapping[str, Any], where: str) -> Path:
        """A row's picture: bytes in a Parquet file, base64 in a table, the name of a file in the folder of
        pictures, or in a table the index of another row. Raises BifronsError where there is none."""
        value = next((row[name] for name in _PICTURES if row.get(name)), None)
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and value in self._by_index:
            return self._by_index[value]
        if isinstance(value, str) and len(value) > _LONGEST_NAME:
            try:
                value = base64.b64decode(value, validate=True)
            except binascii.Error as error:
                raise BifronsError(f"{where}: the picture is no base64: {error}") from error
        path = self._copy(value) if isinstance(value, bytes) else self._file(value, where)
        if row.get("index") is not None:
            self._by_index[str(row["index"])] = path
        return path

    def _copy(self, content: bytes) -> Path:
        path = make_folder(self._copies) / hashlib.sha256(content).hexdigest()
        if not path.is_file():
            write_file(path, content, durable=False)
        return path

    def _file(self, name: Any, where: str) -> Path:
        if not isinstance(name, str):
            raise BifronsError(
                f"{where} has no picture; accepted: {' or '.join(_PICTURES)}, as bytes, base64 or a name"
            )
        root = os.path.realpath(self._images)
        path = os.path.realpath(os.path.join(root, name))
        if os.path.commonpath((root, path)) != root or not os.path.isfile(path):
            raise BifronsError(
                f"{where}: {self._images} has no picture {name!r}; accepted: --images FOLDER with it"
            )
        return Path(path)


def text_in(row: Mapping[str, Any], where: str, *names: str) -> str:
    """The first text or number among these columns. Raises BifronsError where there is none."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
    raise BifronsError(f"{where} has no {' or '.join(names)}; it has {', '.join(map(str, row))}")


def texts_in(row: Mapping[str, Any], where: str, *names: str) -> tuple[str, ...]:
    """The first text or list of texts among these columns, as a list."""
    for name in names:
        value = row.get(name)
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return tuple(value)
    return (text_in(row, where, *names),)
