"""What a batch does with its rows: paint, answer or locate. A task is checked by row in the command's process
and opened, with a model, in each worker."""

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..blocks.chat.pipeline import ChatPipeline
from ..blocks.chat.text_generation import TextGenerationOptions
from ..blocks.errors import OptionError, PromptError, shown
from ..blocks.image_io import open_image, write_png
from ..blocks.sampling.request import check_context
from ..janus.image_generation import ImageGenerationOptions
from ..janus.pipeline import JanusPipeline
from ..vl2.grounding import parse_grounding
from ..vl2.prompts import locate_prompt
from .models import ModelChoice
from .rows import Content, Row

_LONGEST_PATH = 4096
"""Longer texts are pictures in base64."""

_PAINT = {
    "prompt": str,
    "guidance_scale": float,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "negative_prompt": str,
}
_ASK = {
    "image": object,
    "question": str,
    "max_new_tokens": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
}
_LOCATE = {"image": object, "phrase": str}


@dataclass(frozen=True)
class Result:
    """What came of a row: its number, what is recorded of it (with `error` if it failed), a picture's PNG."""

    number: int
    record: Content
    png: bytes = b""


class OpenTask(Protocol):
    """A task with its model, in a worker."""

    def prepare(self, row: Row) -> Any:
        """What `compute` needs of a row. Raises BifronsError for a row that can't be done."""
        ...

    def compute(self, rows: Sequence[Row], prepared: Sequence[Any]) -> Sequence[Any]:
        """An output for each row, all of which have the same `options`. Raises BifronsError."""
        ...

    def finish(self, row: Row, output: Any) -> Result:
        """The result of an output; runs beside the next call of `compute`."""
        ...


@dataclass(frozen=True)
class Task(ABC):
    """A task with all that its results depend on; picklable.

    name: that of the command; doing: for progress; columns: of its rows, with their types; outputs:
    what its results have beside.
    """

    model: ModelChoice

    name: ClassVar[str]
    doing: ClassVar[str]
    columns: ClassVar[Mapping[str, type]]
    outputs: ClassVar[Mapping[str, type]]

    @abstractmethod
    def check(self, content: Content) -> tuple[Content, Content]:
        """See `rows.Check`."""

    def _typed(self, options: Content) -> Content:
        """Options whose columns hold floats as floats, so that 5 and 5.0 are the same."""
        return {
            name: float(value) if self.columns[name] is float else value for name, value in options.items()
        }

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What results depend on beside model, rows and seed."""

    @abstractmethod
    def open(self, device: str) -> OpenTask:
        """Load the model. Raises BifronsError."""


def _text(content: Content, name: str) -> str:
    value = content.get(name)
    if not isinstance(value, str) or not value.strip():
        raise PromptError(f"the {name} is {shown(value)}; accepted: a text that is not empty")
    return value


@dataclass(frozen=True)
class Paint(Task):
    """Pictures of prompts. options: those of all rows that bring no others."""

    options: Mapping[str, Any] = field(default_factory=dict)

    name, doing, outputs = "paint", "painting", {"picture": bytes}
    columns = _PAINT

    def check(self, content: Content) -> tuple[Content, Content]:
        """See `rows.Check`."""
        chosen = {**self.options, **content}
        prompt = _text({"prompt": chosen.pop("prompt", None)}, "prompt")
        ImageGenerationOptions(**chosen)
        return {"prompt": prompt, "negative_prompt": chosen.pop("negative_prompt", None)}, self._typed(chosen)

    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        return {"options": dict(self.options)}

    def open(self, device: str) -> "OpenPaint":
        """See `Task`."""
        return OpenPaint(self.model.load_painter(device))


class OpenPaint:
    """See `OpenTask`."""

    def __init__(self, pipe: JanusPipeline) -> None:
        self._pipe = pipe

    def prepare(self, row: Row) -> None:
        """See `OpenTask`."""
        config = self._pipe.model.config
        ids = self._pipe.processor.generation_ids(row.content["prompt"], row.content["negative_prompt"])
        check_context(max(map(len, ids)), config.num_codes, config.decoder.max_positions)

    def compute(self, rows: Sequence[Row], prepared: Sequence[Any]) -> Sequence[Any]:
        """See `OpenTask`."""
        prompts = [row.content["prompt"] for row in rows]
        negative = [row.content["negative_prompt"] for row in rows]
        seeds, options = [row.seed for row in rows], dict(rows[0].options)
        return self._pipe.generate(prompts, 1, seeds, negative_prompt=negative, progress=False, **options)

    def finish(self, row: Row, output: Any) -> Result:
        """See `OpenTask`."""
        stream = io.BytesIO()
        write_png(output, stream)
        given = {"guidance_scale": self._pipe.guidance_scale, **dict(row.options)}
        settings = asdict(ImageGenerationOptions(**given))
        del settings["speculate"]
        record = {"id": row.id, "seed": row.seed, **settings, **row.content}
        return Result(row.number, record, stream.getvalue())


@dataclass(frozen=True)
class Ask(Task):
    """Answers to questions about pictures. question: that of rows without one. folder: where the names of
    pictures begin. options: those of all rows that bring no others."""

    folder: Path
    question: str | None = None
    exif: str = "apply"
    options: Mapping[str, Any] = field(default_factory=dict)

    name, doing, outputs = "ask", "answering", {"answer": str}
    columns = _ASK

    def check(self, content: Content) -> tuple[Content, Content]:
        """See `rows.Check`."""
        content = {"question": self.question, **content}
        question = _text(content, "question")
        names = [one.name for one in fields(TextGenerationOptions)]
        chosen = {**self.options, **{name: content[name] for name in names if name in content}}
        TextGenerationOptions(**chosen)
        return {"question": question, "image": picture_of(content, self.folder)}, self._typed(chosen)

    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        return {"options": dict(self.options), "question": self.question, "exif": self.exif}

    def open(self, device: str) -> "OpenAsk":
        """See `Task`."""
        return OpenAsk(self.model.load(device), self.exif)


@dataclass(frozen=True)
class Locate(Task):
    """Boxes around what phrases name in pictures. phrase: that of rows without one; see `Ask`."""

    folder: Path
    phrase: str | None = None
    exif: str = "apply"

    name, doing, outputs = "locate", "locating", {"boxes": list, "problems": list}
    columns = _LOCATE

    def check(self, content: Content) -> tuple[Content, Content]:
        """See `rows.Check`."""
        phrase = _text({"phrase": self.phrase, **content}, "phrase")
        return {"phrase": phrase, "image": picture_of(content, self.folder)}, {}

    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        return {"phrase": self.phrase, "exif": self.exif}

    def open(self, device: str) -> "OpenAsk":
        """See `Task`."""
        return OpenAsk(self.model.load(device), self.exif)


def picture_of(content: Content, folder: Path) -> str | bytes:
    """The picture of a row: bytes (alone, or as datasets write them), a data: URL, base64 or the name of a
    file, made absolute. Raises OptionError for anything else."""
    value = content.get("image")
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value:
        raise OptionError(f"image is {shown(value)}; accepted: the name of a file, a data: URL or bytes")
    if value[:5].lower() == "data:" or len(value) > _LONGEST_PATH:
        return value
    return os.path.abspath(os.path.join(folder, os.path.expanduser(value)))


class OpenAsk:
    """See `OpenTask`; rows with a phrase are located, those with a question answered."""

    def __init__(self, pipe: ChatPipeline, exif: str) -> None:
        self._pipe, self._exif = pipe, exif
        self._fit = pipe.processor.fit(1)

    def prepare(self, row: Row) -> Any:
        """See `OpenTask`: the size of the picture, and the conversation."""
        image = open_image(row.content["image"], exif=self._exif)
        phrase = row.content.get("phrase")
        question = row.content["question"] if phrase is None else locate_prompt(phrase)
        return image.size, self._pipe.question_messages([self._fit(image)], question)

    def compute(self, rows: Sequence[Row], prepared: Sequence[Any]) -> Sequence[Any]:
        """See `OpenTask`."""
        messages, seeds = [conversation for _, conversation in prepared], [row.seed for row in rows]
        answers = self._pipe.chat_batch(messages, seed=seeds, **dict(rows[0].options))
        return [(size, answer) for (size, _), answer in zip(prepared, answers, strict=True)]

    def finish(self, row: Row, output: Any) -> Result:
        """See `OpenTask`."""
        size, answer = output
        image = row.content["image"]
        record: Content = {
            "id": row.id,
            "image": image if isinstance(image, str) and len(image) < _LONGEST_PATH else None,
        }
        if "phrase" not in row.content:
            settings = {"question": row.content["question"], **dict(row.options)}
            return Result(row.number, {**record, "seed": row.seed, **settings, "answer": answer})
        found = parse_grounding(answer, size)
        boxes = [{"label": box.label, "box": list(box.pixels)} for box in found.boxes]
        problems = [problem.reason for problem in found.problems]
        return Result(
            row.number, {**record, "phrase": row.content["phrase"], "boxes": boxes, "problems": problems}
        )
