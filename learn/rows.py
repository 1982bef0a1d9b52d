"""Training data as people have it: folders of captioned pictures, and files of rows.

A row is for painting (a prompt and its picture) or for reading (a conversation whose answers are learned).
What is wrong with a row is collected, not raised, so that one report names every bad row.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..blocks.errors import BifronsError, OptionError, one_line, shown
from ..blocks.files import decode_text, read_bounded
from ..blocks.json_config import decode_json
from ..blocks.message_parts import ROLES
from ..blocks.vocabulary import Vocabulary, Work, last_question

CAPTIONS, PICTURES = ("prompt", "text", "caption"), ("image", "file_name", "picture")
"""Accepted names of a painting row's prompt and of its picture."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Pictures of a folder."""
MANIFESTS = ("metadata.jsonl", "metadata.csv")
"""Files that list the pictures of a folder, as in Hugging Face's imagefolder."""
FILE_BYTES = 1 << 30
"""Largest file of rows."""
CAPTION_BYTES = 1 << 16
"""Largest `.txt` caption."""


@dataclass(frozen=True)
class PaintRow:
    """A prompt and the picture to learn for it. `where` names the row in errors."""

    where: str
    prompt: str
    picture: Path


@dataclass(frozen=True)
class ReadRow:
    """A conversation in a form of `blocks.chat.messages`, which ends with the assistant's answer."""

    where: str
    messages: list[dict[str, Any]]


Row = PaintRow | ReadRow


@dataclass(frozen=True)
class Fault:
    """What is wrong with a row, or with a picture of it."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def new_words(rows: Iterable[Row], known: Vocabulary) -> dict[Work, frozenset[str]]:
    """The words of prompts and of questions that a model doesn't know."""
    rows = list(rows)
    prompts = [row.prompt for row in rows if isinstance(row, PaintRow)]
    questions = [last_question(row.messages[:-1]) for row in rows if isinstance(row, ReadRow)]
    return known.new_words(prompts, questions)


def read_rows(source: str | Path) -> tuple[list[Row], list[Fault]]:
    """The rows of a folder or file, in order, and the faults of those left out.

    A folder holds pictures, each with a `.txt` caption of its name, or one of `MANIFESTS`. A file is
    `.jsonl`, `.json` (a list) or `.csv`: rows with a prompt (`CAPTIONS`) and a picture (`PICTURES`, relative
    to the file), or with `messages`. Raises `OptionError` if the source itself can't be read or has no rows.
    """
    path = Path(source)
    if path.is_dir():
        manifest = next((path / name for name in MANIFESTS if (path / name).is_file()), None)
        found = _captioned_pictures(path) if manifest is None else _rows_of_file(manifest)
    else:
        found = _rows_of_file(path)
    rows: list[Row] = []
    faults: list[Fault] = []
    for one in found:
        (faults if isinstance(one, Fault) else rows).append(one)  # type: ignore[arg-type]
    if not rows and not faults:
        raise OptionError(
            f"{path} holds no rows; accepted: a folder of pictures with .txt captions or metadata.jsonl, or "
            "a .jsonl, .json or .csv file"
        )
    return rows, faults


def _captioned_pictures(folder: Path) -> Iterator[Row | Fault]:
    for picture in sorted(folder.rglob("*")):
        if picture.suffix.lower() not in SUFFIXES:
            continue
        where, caption = str(picture.relative_to(folder)), picture.with_suffix(".txt")
        try:
            text = decode_text(read_bounded(caption, CAPTION_BYTES)).strip()
        except FileNotFoundError:
            yield Fault(where, f"it has no caption; write one to {caption.name} beside it")
        except (OSError, ValueError) as error:
            yield Fault(where, f"its caption {caption.name} can't be read: {error}")
        else:
            yield PaintRow(where, text, picture) if text else Fault(where, f"{caption.name} is empty")


def _rows_of_file(path: Path) -> Iterator[Row | Fault]:
    readers = {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise OptionError(f"{path} is no data; accepted: a folder, or a {', '.join(readers)} file")
    for where, value in reader(read_text(path), path.name):
        yield value if isinstance(value, Fault) else _row(value, where, path.parent)


def read_text(path: Path, limit: int = FILE_BYTES) -> str:
    """The text of a file of at most `limit` bytes. Raises `OptionError`."""
    try:
        return decode_text(read_bounded(path, limit))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OptionError(f"{path} can't be read: {reason}") from error


def numbered_lines(text: str, name: str) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each after where it stands in the file `name`."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{name} line {number}", line.strip()


def _json_lines(text: str, name: str) -> Iterator[tuple[str, Any]]:
    for where, line in numbered_lines(text, name):
        try:
            yield where, decode_json(line.encode())
        except ValueError as error:
            yield where, Fault(where, f"it is not JSON: {error}")


def _json_list(text: str, name: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = decode_json(text.encode())
    except ValueError as error:
        raise OptionError(f"{name} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise OptionError(f"{name} holds no list; accepted: a list of rows, or .jsonl with one a line")
    yield from ((f"{name} entry {number}", row) for number, row in enumerate(rows, start=1))


def _csv_rows(text: str, name: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            yield f"{name} line {reader.line_num}", {key: cell for key, cell in row.items() if cell}
    except csv.Error as error:
        raise OptionError(f"{name} line {reader.line_num} can't be read as CSV: {error}") from error


def _row(value: Any, where: str, folder: Path) -> Row | Fault:
    try:
        if not isinstance(value, Mapping):
            raise OptionError(f"it is {shown(value)}; accepted: an object")
        if "messages" in value:
            return ReadRow(where, _messages(value["messages"], folder))
        prompt, picture = _one_of(value, CAPTIONS, "prompt"), _one_of(value, PICTURES, "picture")
        if not (folder / picture).is_file():
            raise OptionError(f"there is no file {picture}")
        return PaintRow(where, prompt.strip(), folder / picture)
    except BifronsError as error:
        return Fault(where, one_line(str(error)))


def _one_of(row: Mapping[str, Any], names: Sequence[str], what: str) -> str:
    name = next((name for name in names if name in row), None)
    if name is None:
        raise OptionError(f"it has no {what} (nor messages); accepted names: {', '.join(names)}")
    if not isinstance(row[name], str) or not row[name].strip():
        raise OptionError(f"{name} is {shown(row[name])}; accepted: a text that is not empty")
    return row[name]


def _messages(messages: Any, folder: Path) -> list[dict[str, Any]]:
    """Messages with the paths of their pictures made relative to the folder."""
    if not isinstance(messages, list) or not all(isinstance(one, Mapping) for one in messages):
        raise OptionError(f"messages is {shown(messages)}; accepted: a list of messages")
    if not messages or ROLES.get(str(messages[-1].get("role"))) != "assistant":
        raise OptionError("messages must end with the assistant's answer, which is what is learned")
    return [with_paths(message, folder) for message in messages]


def with_paths(message: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A message with the paths of its pictures made relative to the folder."""
    """A message with the paths of its pictures made relative to the folder."""
    message = dict(message)
    if isinstance(message.get("images"), list):
        message["images"] = [_with_path(image, folder) for image in message["images"]]
    if isinstance(message.get("content"), list):
        message["content"] = [_part_with_path(part, folder) for part in message["content"]]
    return message


def _part_with_path(part: Any, folder: Path) -> Any:
    if not isinstance(part, Mapping):
        return part
    part = dict(part)
    for key in ("image", "picture", "path", "url", "image_url"):
        if isinstance(part.get(key), Mapping) and "url" in part[key]:
            part[key] = {**part[key], "url": _with_path(part[key]["url"], folder)}
        elif key in part:
            part[key] = _with_path(part[key], folder)
    return part


def _with_path(source: Any, folder: Path) -> Any:
    is_path = isinstance(source, str) and (folder / source[:4096]).is_file()
    return str(folder / source) if is_path else source
