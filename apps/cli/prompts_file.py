"""Prompts of `bifrons generate` from a file: text, JSON lines, a JSON list or CSV.

A prompt may bring settings of its own. Everything is checked, with the place where it stands, before a model
is loaded.
"""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ...blocks.errors import BifronsError, OptionError, PromptError, ResourceError
from ...blocks.files import decode_text
from ...blocks.json_config import TABLE_BYTES, decode_json, shown
from .file_kinds import PROMPTS, file_head, other_kind
from .inputs import STDIN, read_input, reason_of

_FIELDS: dict[str, type] = {
    "prompt": str,
    "seed": int,
    "num_images": int,
    "guidance_scale": float,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "negative_prompt": str,
}
"""What a prompt may bring in JSON and CSV; all but `prompt` may be left out."""


@dataclass(frozen=True)
class PromptEntry:
    """A prompt, the settings that it brings, and where it stands, for errors."""

    prompt: str
    settings: dict[str, Any] = field(default_factory=dict)
    where: str = "the prompt"


def read_prompts(source: str) -> list[PromptEntry]:
    """The prompts in a file, or for `-` of standard input, as its name or its beginning says.

    .jsonl, .ndjson     an object a line
    .json               a list of texts and objects
    .csv, .tsv          a header with the column `prompt`; cells left empty are not given
    any other           a prompt a line; a line that begins with # is a comment

    Blank lines are skipped. Raises `BifronsError` with file and line.
    """
    name = "standard input" if source == STDIN else source
    content = b""
    try:
        content = read_input(source, TABLE_BYTES)
        if problem := other_kind(name, content, PROMPTS):
            raise ResourceError(problem)
        text = decode_text(content)
    except (OSError, ValueError) as error:
        if isinstance(error, BifronsError):
            raise
        if problem := other_kind(name, content or file_head(source), PROMPTS):
            raise ResourceError(problem) from error
        raise ResourceError(
            f"{name} can't be read as prompts: {reason_of(error)}; accepted: .txt, .jsonl, .json, .csv files"
        ) from error
    if "\0" in text:
        raise OptionError(f"{name} is no text: it holds NUL; accepted: .txt, .jsonl, .json and .csv files")
    suffix = os.path.splitext(source)[1].lower()
    if suffix in (".csv", ".tsv"):
        found = list(_read_csv(text, name))
    elif suffix == ".json":
        found = list(_read_json(text, name))
    elif suffix in (".jsonl", ".ndjson") or (suffix == "" and text.lstrip().startswith("{")):
        found = list(_read_json_lines(text, name))
    else:
        found = [
            PromptEntry(line, {}, where) for where, line in _numbered(text, name) if not line.startswith("#")
        ]
    if not found:
        raise PromptError(f"{name} holds no prompts")
    return found


def _numbered(text: str, name: str) -> Iterator[tuple[str, str]]:
    """The lines that aren't blank, stripped, and their places. Only line feeds end lines, with or without
    carriage returns: a prompt or a JSON text may hold Unicode's other separators."""
    for number, line in enumerate(text.split("\n"), start=1):
        if stripped := line.strip():
            yield f"{name} line {number}", stripped


def _read_json_lines(text: str, name: str) -> Iterator[PromptEntry]:
    for where, line in _numbered(text, name):
        yield _entry(_parse(line, where), where)


def _read_json(text: str, name: str) -> Iterator[PromptEntry]:
    content = _parse(text, name)
    if not isinstance(content, list):
        raise OptionError(f"{name} holds no list; accepted: a list of prompts, or .jsonl with one a line")
    for number, value in enumerate(content, start=1):
        yield _entry(value, f"{name} entry {number}")


def _parse(text: str, where: str) -> Any:
    try:
        return decode_json(text.encode())
    except ValueError as error:
        raise OptionError(f"{where} is not JSON: {error}") from error


def _read_csv(text: str, name: str) -> Iterator[PromptEntry]:
    """Separated by commas, semicolons or tabs, whichever the header has most."""
    header_line = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header_line.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [cell.strip().lower() for cell in next(rows, [])]
        _check_names(header, f"{name} line 1")
        if len(set(header)) < len(header):
            raise OptionError(f"{name} line 1 names a column twice: {shown(header)}")
        for row in rows:
            where = f"{name} line {rows.line_num}"
            if len(row) > len(header):
                raise OptionError(
                    f"{where} has {len(row)} cells, the header {len(header)}; accepted: cells that hold "
                    f"{delimiter!r} within double quotes"
                )
            cells = {key: cell.strip() for key, cell in zip(header, row, strict=False) if cell.strip()}
            if cells:
                yield _entry({key: _number(key, cell, where) for key, cell in cells.items()}, where)
    except csv.Error as error:
        raise OptionError(f"{name} line {rows.line_num} can't be read as CSV: {error}") from error


def _number(key: str, cell: str, where: str) -> Any:
    try:
        return _FIELDS[key](cell)
    except ValueError as error:
        raise OptionError(f"{where}: {key} is {shown(cell)}; accepted: a number") from error


def _check_names(names: Iterable[str], where: str) -> None:
    names = list(names)
    for key in names:
        if key not in _FIELDS:
            raise OptionError(f"{where}: {shown(key)} is not known; accepted: {', '.join(_FIELDS)}")
    if "prompt" not in names:
        raise OptionError(f"{where} has no prompt; accepted: {', '.join(_FIELDS)}")


def _entry(value: Any, where: str) -> PromptEntry:
    """A prompt from a text or an object. The numbers' ranges are checked where all options are."""
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise OptionError(
            f'{where} is {shown(value)}; accepted: an object such as {{"prompt": "a red star"}}'
        )
    _check_names(value, where)
    settings = {key: setting for key, setting in value.items() if setting is not None and key != "prompt"}
    for key, setting in settings.items():
        if _FIELDS[key] is float and type(setting) is int:
            settings[key] = float(setting)
    if not isinstance(value["prompt"], str) or not value["prompt"].strip():
        raise PromptError(
            f"{where}: the prompt is {shown(value['prompt'])}; accepted: a text that is not empty"
        )
    return PromptEntry(value["prompt"], settings, where)
