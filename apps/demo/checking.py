"""*Check it*: a model that reads pictures counts what the sentence of a painted one asked for, and says
whether it is where it should be."""

import html
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...blocks.errors import BifronsError
from ...blocks.image_io import text_chunks, write_png
from ...eval.geneval.scoring import relations
from ...vl2.grounding import Box, parse_grounding
from ...vl2.prompts import locate_prompt
from ..files import write_new
from ..pipelines import explain_out_of_memory
from .components import Stopped, Update, error_status, follow, gr, queue_status, status_html
from .drawing import draw_large
from .gallery import open_painted
from .image_form import without_style
from .jobs import Job, Jobs, Waiting
from .models import LoadedModel
from .sentence import Relation, Thing, Verdict, named_relations, named_things, number_in

TAB = "check"
_MAX_TOKENS = 256
_SIGNS = {True: ("✓", "right"), False: ("✗", "wrong"), None: ("?", "unknown")}


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
            opened = open_painted(files[chosen])
            sentence, picture = without_style(text_chunks(opened)["prompt"]), opened.convert("RGB")
            if not named_things(sentence, self.reader.pipe.vocabulary):
                raise BifronsError("the sentence names nothing that can be counted")
            job = Job(self.reader.queue, lambda job: check_sentence(job, self.reader, picture, sentence))
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

    def _end(self, picture: Image.Image, verdicts: Sequence[Verdict], boxes: list[Box]) -> Update:
        update = self._say(report_html(verdicts, self.reader.name))
        if boxes:
            drawn = draw_large(picture, boxes)
            path = self.folder / f"checked-{secrets.token_hex(8)}.png"
            update[self.boxes] = gr.update(
                value=str(write_new(path, lambda stream: write_png(drawn, stream))), visible=True
            )
        return update


def report_html(verdicts: Sequence[Verdict], reader: str) -> str:
    """The verdicts as HTML: a line for each, right, wrong or unknown in words and signs."""
    lines = []
    for right, words in verdicts:
        sign, label = _SIGNS[right]
        mark = f'<span role="img" aria-label="{label}">{sign}</span>'
        lines.append(f'<li class="bf-{label}">{mark} {html.escape(words)}</li>')
    items, name = "".join(lines), html.escape(reader)
    looked = any(right is not None for right, _ in verdicts)
    note = f"<small>counted by {name}, which may be wrong too</small>" if looked else ""
    return f'<div class="bf-status" role="status"><ul class="bf-check">{items}</ul>{note}</div>'


def check_sentence(
    job: Job, reader: LoadedModel, picture: Image.Image, sentence: str
) -> tuple[list[Verdict], list[Box]]:
    """What a model says about the things of a sentence and their relations, and its boxes if it gives any."""
    check = _Check(job, reader, picture)
    with explain_out_of_memory("counting", lambda: "accepted: a smaller picture"):
        known = reader.pipe.vocabulary
        verdicts = [check.count(thing) for thing in named_things(sentence, known)]
        verdicts += filter(None, map(check.relate, named_relations(sentence, known)))
    return verdicts, [box for boxes in check.boxes.values() for box in boxes]


class _Check:
    """A model that looks at a picture; `boxes` are what it has found, by the phrases of a sentence."""

    def __init__(self, job: Job, reader: LoadedModel, picture: Image.Image) -> None:
        self.job, self.reader, self.picture = job, reader, picture
        self.known: dict[str, str] = {}
        self.boxes: dict[str, list[Box]] = {}

    def count(self, thing: Thing) -> Verdict:
        """Count a thing. Words that the model doesn't know are left out; without the last, the noun, it can't
        be counted."""
        unknown = self.reader.unknown_words(thing.phrase)
        words = [word for word in thing.phrase.split() if not self.reader.unknown_words(word)]
        reason = f"{self.reader.name} doesn't know {' or '.join(map(repr, unknown))}"
        if not words or words[-1] != thing.phrase.split()[-1]:
            return Verdict(None, f"{thing.asked}; {reason}")
        phrase = self.known[thing.phrase] = " ".join(words)
        self.job.report(phrase)
        right, said = thing.verdict(self._locate(thing, phrase) if self.reader.locates else self._ask(phrase))
        return Verdict(right, f"{said}; counted as “{phrase}”: {reason}" if unknown else said)

    def _locate(self, thing: Thing, phrase: str) -> int:
        answer = self._answer(locate_prompt(f"the {phrase}"))
        self.boxes[thing.phrase] = list(parse_grounding(answer, self.picture.size).boxes)
        return len(self.boxes[thing.phrase])

    def _ask(self, phrase: str) -> int:
        answer = self._answer(f"How many {phrase} are there?")
        number = number_in(answer)
        if number is None:
            raise BifronsError(f"{self.reader.name} gave no number of {phrase}: {answer[:100]!r}")
        return number

    def relate(self, relation: Relation) -> Verdict | None:
        """Check a relation of things that were counted; None for others. By the rule of GenEval for boxes."""
        first, second = self.known.get(relation.first), self.known.get(relation.second)
        if first is None or second is None:
            return None
        self.job.report(f"{first} {relation.name} {second}")
        if not self.reader.locates:
            answer = self._answer(f"Is the {first} {relation.name} the {second}?").strip().lower()
            holds = True if answer.startswith("yes") else False if answer.startswith("no") else None
            return relation.verdict(holds)
        sides = [
            [np.array(box.pixels, np.float32) for box in self.boxes[phrase]]
            for phrase in (relation.first, relation.second)
        ]
        pairs = [relations(one, other) for one in sides[0] for other in sides[1]]
        if pairs and not any(pairs):
            return relation.verdict(None)
        return relation.verdict(bool(pairs) and all(relation.name in pair for pair in pairs))

    def _answer(self, question: str) -> str:
        text = ""
        messages = self.reader.pipe.question_messages(self.picture, question)
        for piece in self.reader.pipe.chat(messages, _MAX_TOKENS, stream=True):
            text += piece
            self.job.check()
        return text
