"""The problems of a file: what is asked, and the right answer."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...blocks.errors import BifronsError, shown
from ...learn.rows import with_paths
from ..row_files import Pictures, read_rows, text_in
from ..runs.detect import file_sha256
from .values import expected_answer

FORMATS = ".jsonl, .json, .tsv or .parquet of {question, answer}, or of {messages, answer}"
PROMPT = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."
"""DeepSeek's advice for mathematics (README of DeepSeek-R1, "Usage Recommendations")."""
_QUESTIONS, _ANSWERS = ("question", "problem"), ("answer", "expected_answer", "solution")
_GROUPS = ("subject", "category", "level")
_LONGEST_QUESTION = 1 << 20
_PICTURES = ("image", "imgname", "image_path", "img_path")


class Problem(NamedTuple):
    """A conversation to answer, the right answer, a group for scores apart, and what identifies it all."""

    messages: list[dict[str, Any]]
    expected: str
    group: str
    digest: str


def read_problems(path: Path, prompt: str, copies: Path, images: Path | None = None) -> Iterator[Problem]:
    """The problems of a file, or of a folder's .parquet files.

    A row has a `question` (or `problem`), which `prompt` puts into words, or the `messages` of a conversation
    that ends with the user's; its `answer` (or `expected_answer`, `solution`) may be a whole solution with a
    box. Pictures are files beside it or in `images`; those within a row are written to `copies`. Raises
    BifronsError, which names the row.
    """
    home = path if path.is_dir() else path.parent
    pictures = Pictures(images or home, copies)
    for where, row in read_rows(path):
        messages, files = _conversation(row, where, prompt, pictures, images or home)
        expected = expected_answer(text_in(row, where, *_ANSWERS))
        if not expected:
            raise BifronsError(f"{where}: its answer is empty; accepted: a text or a number")
        group = next((str(row[name]) for name in _GROUPS if row.get(name) not in (None, "")), "")
        digest = hashlib.sha256(repr((messages, [file_sha256(one) for one in files])).encode()).hexdigest()
        yield Problem(messages, expected, group, digest)


def _conversation(
    row: Mapping[str, Any], where: str, prompt: str, pictures: Pictures, home: Path
) -> tuple[list[dict[str, Any]], list[Path]]:
    """The messages of a row, and the files of their pictures."""
    if "messages" in row:
        given = row["messages"]
        if not isinstance(given, list) or not given or not all(isinstance(one, Mapping) for one in given):
            raise BifronsError(f"{where}: messages is {shown(given)}; accepted: a list of messages")
        messages = [with_paths(one, home) for one in given]
        return messages, list(_files(messages))
    question = text_in(row, where, *_QUESTIONS)
    if len(question) > _LONGEST_QUESTION:
        raise BifronsError(
            f"{where}: its question has {len(question):,} characters; accepted: {_LONGEST_QUESTION:,}"
        )
    parts: list[dict[str, Any]] = [{"type": "text", "text": prompt.replace("{question}", question)}]
    files = [pictures.of(row, where)] if any(row.get(name) for name in _PICTURES) else []
    parts = [*({"type": "image", "image": str(file)} for file in files), *parts]
    return [{"role": "user", "content": parts}], files


def _files(value: Any) -> Iterator[Path]:
    """The files that are named in messages."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _files(one)
    elif isinstance(value, str) and len(value) < 4096 and value.startswith("/") and Path(value).is_file():
        yield Path(value)
