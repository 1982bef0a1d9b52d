"""A suite: where its files come from, what is asked about a picture, and how answers become scores."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...blocks.errors import BifronsError, OptionError
from ...blocks.json_config import CONFIG_BYTES, parse_json, read_value
from ..atomic_io import read_file, read_lines
from ..geneval.suites import Row
from .official_script import words_of_script
from .questions import Answer, Question


class Item(NamedTuple):
    """A contribution to the mean of a group (a skill, a category, the whole): a value from 0 to 1."""

    group: str
    value: float


class Figures(NamedTuple):
    """A model's overall score as others published it, 0 to 1."""

    model: str
    score: float
    source: str


@dataclass(frozen=True)
class Wording:
    """The words around what a suite asks. Names in braces, such as {question}, stand for a row's texts."""

    text: str
    system: str = ""
    picture_first: bool = True

    def ask(
        self, max_tokens: int, accepted: Sequence[str] = (), choices: Sequence[str] = (), **fields: str
    ) -> Question:
        """The question for a row's fields."""
        names = re.compile("|".join(rf"\{{{name}\}}" for name in fields))
        text = names.sub(lambda found: fields[found[0][1:-1]], self.text)
        return Question(text, self.system, self.picture_first, max_tokens, tuple(accepted), tuple(choices))

    @property
    def sha256(self) -> str:
        """Identifies the words."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Suite:
    """A suite of prompts with questions. Names of files, counts and formulas are the official ones.

    formula: how the score is computed, for the report. files: what the user's file or folder holds.
    prompts, prompts_sha256: number and `lines_sha256` of the official rows; None where not known.
    is_official: whether rows are those of the official file, where something else than their sha256 tells.
    file_sha256: of the official files, by name. judge: the official judge, by the last part of its name.
    fields: names in braces that a wording must hold. read: rows from the user's path. ask: a row's
    questions. score: the items of one picture from a row, its answers, whether it is the prompt's last
    picture, and the switch `official`. weights: of groups in the overall score, from those that occur.
    script_fields: what stands for an expression in the text of the official script, see `words_of_script`.
    """

    name: str
    title: str
    source: str
    license: str
    formula: str
    files: str
    judge: str
    read: Callable[[Path], list[Row]]
    ask: Callable[[Row, Wording], list[Question]]
    score: Callable[[Row, Sequence[Answer], bool, bool], list[Item]]
    weights: Callable[[Sequence[str]], dict[str, float]]
    wording: Wording
    fields: tuple[str, ...]
    official_wording: str = ""
    script_fields: Mapping[str, str] | None = None
    prompts: int | None = None
    prompts_sha256: str | None = None
    is_official: Callable[[Sequence[Row]], bool] | None = None
    file_sha256: Mapping[str, str] | None = None
    images_per_prompt: int = 1
    needs_probabilities: bool = False
    has_official_switch: bool = False
    published: tuple[Figures, ...] = ()

    def read_rows(self, path: Path | None) -> list[Row]:
        """The suite's rows from the user's file or folder. Raises BifronsError; without one it says where
        to get it."""
        if path is None:
            raise BifronsError(
                f"the suite {self.name} needs its data, which is not part of this package ({self.license}): "
                f"get {self.files} from {self.source} and name it with --data PATH"
            )
        if not path.exists():
            raise BifronsError(f"{path} does not exist; accepted: {self.files} from {self.source}")
        rows = self.read(path)
        if not rows:
            raise BifronsError(f"{path} holds no prompts; accepted: {self.files}")
        return rows

    def check_wording(self, wording: Wording) -> None:
        """Raise OptionError unless the wording holds each of the suite's fields."""
        missing = [name for name in self.fields if f"{{{name}}}" not in wording.text]
        if missing:
            raise OptionError(
                f"the judge's prompt lacks {', '.join(f'{{{name}}}' for name in missing)}; accepted for "
                f"{self.name}: a text with {', '.join(f'{{{name}}}' for name in self.fields)} in it"
            )


def read_wording(path: Path, suite: Suite) -> Wording:
    """A judge's prompt from a user's file: the text, a `.json` object of `text` and, if wanted, `system`
    and `picture_first`, or the suite's official script (`.py`). Raises BifronsError."""
    if path.suffix == ".py":
        if suite.script_fields is None:
            raise BifronsError(f"{path} is a script; accepted for {suite.name}: a text or .json")
        return Wording(*words_of_script(read_file(path), suite.script_fields, str(path)))
    if path.suffix != ".json":
        try:
            return Wording(read_file(path).decode("utf-8").removesuffix("\n"))
        except UnicodeDecodeError as error:
            raise BifronsError(f"{path} is no text in UTF-8: {error}") from error
    content = read_value(path, CONFIG_BYTES, BifronsError)
    known = {"text": str, "system": str, "picture_first": bool}
    if (
        not isinstance(content, dict)
        or not content.keys() <= known.keys()
        or not all(isinstance(value, known[name]) for name, value in content.items())
        or not content.get("text")
    ):
        raise BifronsError(
            f'{path} is no prompt; accepted: {{"text": ..., "system": ..., "picture_first": ...}}'
        )
    return Wording(**content)


def read_lines_of_json(path: Path) -> list[tuple[str, Any]]:
    """The values of a `.jsonl` file, each with its place for errors. Raises BifronsError."""
    return [
        (f"{path} line {number}", parse_json(line, f"{path} line {number}", BifronsError))
        for number, line in read_lines(path)
        if line.strip()
    ]


def text_of(row: Any, name: str, where: str) -> str:
    """A text that is not empty. Raises BifronsError that names the field."""
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise BifronsError(f"{where}: {name!r} is {value!r}; accepted: a text")
    return value
