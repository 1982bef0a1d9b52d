"""*Check it*: a model that reads pictures counts what the sentence of a painted one asked for."""

import html
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...blocks.errors import BifronsError
from ...blocks.image_io import text_chunks, write_png
from ...vl2.grounding import Box, parse_grounding
from ...vl2.prompts import locate_prompt
from ..files import write_new
from ..pipelines import explain_out_of_memory
from .components import Stopped, Update, error_status, follow, gr, queue_status, status_html
from .drawing import draw_large
from .jobs import Job, Jobs, Waiting
from .models import LoadedModel
from .sentence import Thing, named_things, number_in

TAB = "check"
_MAX_TOKENS = 256

Counted = list[tuple[Thing, int]]


class PictureCheck:
    """The button *Check it*, and its result: a line for each thing, and the picture with boxes."""

    def __init__(self, models: Sequence[LoadedModel], jobs: Jobs, folder: Path) -> None:
        self.reader = next((loaded for loaded in models if loaded.locates), models[0])
        self.jobs, self.folder = jobs, folder
        self.button = gr.Button("Check it", size="sm", min_width=90, elem_id="check")

    def add_result(self) -> None:
        """Add the components of the result where the page wants them."""
        self.report = gr.HTML("", visible=False, elem_id="check-report", elem_classes="bf-flush")
        self.boxes = gr.Image(
            label="What was counted",
            show_label=False,
            format="png",
            interactive=False,
            visible=False,
            height=256,
            buttons=["download", "fullscreen"],
            elem_id="checked",
        )

    @property
    def result(self) -> list[Any]:
        """The components that `run` updates."""
        return [self.report, self.boxes, self.button]

    def hide(self) -> Update:
        """Updates that hide an older result."""
        return {self.report: gr.update(value="", visible=False), self.boxes: gr.update(visible=False)}

    def _say(self, words: str) -> Update:
        return {self.report: gr.update(value=words, visible=True)}

    def run(self, files: list[str], chosen: int, request: gr.Request) -> Iterator[Update]:
        """Handle *Check it*: yield updates until the verdict is there."""
        idle = {self.button: gr.update(interactive=True)}
        try:
            if not files:
                raise BifronsError("there is no picture to check; paint one first")
            with Image.open(files[chosen]) as opened:
                sentence, picture = text_chunks(opened)["prompt"], opened.convert("RGB")
            things = named_things(sentence)
            if not things:
                raise BifronsError("the sentence names nothing that can be counted")
            job = Job(self.reader.queue, lambda job: count_things(job, self.reader, picture, things))
            self.jobs.add(request.session_hash, TAB, job)
            busy = {self.button: gr.update(interactive=False)}
            yield self.hide() | self._say(status_html("Counting …")) | busy
            for update in follow(self.jobs, request.session_hash, TAB, job):
                waiting = isinstance(update, Waiting)
                yield self._say(queue_status(update) if waiting else status_html(f"Looking for {update} …"))
            yield idle | self._end(picture, *job.result)
        except Stopped:
            yield idle | self.hide()
        except Exception as error:
            yield idle | self._say(error_status(error))

    def _end(self, picture: Image.Image, counted: Counted, boxes: list[Box]) -> Update:
        update = self._say(report_html(counted, self.reader.name))
        if boxes:
            drawn = draw_large(picture, boxes)
            path = self.folder / f"checked-{secrets.token_hex(8)}.png"
            update[self.boxes] = gr.update(
                value=str(write_new(path, lambda stream: write_png(drawn, stream))), visible=True
            )
        return update


def report_html(counted: Counted, reader: str) -> str:
    """The verdict as HTML: a line for each thing, right or wrong in words and signs."""
    lines = []
    for thing, seen in counted:
        right, words = thing.verdict(seen)
        sign, label = ("✓", "right") if right else ("✗", "wrong")
        mark = f'<span role="img" aria-label="{label}">{sign}</span>'
        lines.append(f'<li class="bf-{label}">{mark} {html.escape(words)}</li>')
    items, note = "".join(lines), f"counted by {html.escape(reader)}, which may be wrong too"
    verdict = f'<ul class="bf-check">{items}</ul><small>{note}</small>'
    return f'<div class="bf-status" role="status">{verdict}</div>'


def count_things(
    job: Job, reader: LoadedModel, picture: Image.Image, things: Sequence[Thing]
) -> tuple[Counted, list[Box]]:
    """How many of each thing the model sees, and their boxes if it gives boxes."""
    counted: Counted = []
    boxes: list[Box] = []
    with explain_out_of_memory("counting", lambda: "accepted: a smaller picture"):
        for thing in things:
            job.report(thing.phrase)
            if reader.locates:
                seen = parse_grounding(
                    _answer(job, reader, picture, locate_prompt(f"the {thing.phrase}")), picture.size
                ).boxes
                boxes += seen
                counted.append((thing, len(seen)))
                continue
            answer = _answer(job, reader, picture, f"How many {thing.phrase} are there?")
            number = number_in(answer)
            if number is None:
                raise BifronsError(f"{reader.name} gave no number of {thing.phrase}: {answer[:100]!r}")
            counted.append((thing, number))
    return counted, boxes


def _answer(job: Job, reader: LoadedModel, picture: Image.Image, question: str) -> str:
    text = ""
    messages = reader.pipe.question_messages(picture, question)
    for piece in reader.pipe.chat(messages, _MAX_TOKENS, stream=True):
        text += piece
        job.check()
    return text
