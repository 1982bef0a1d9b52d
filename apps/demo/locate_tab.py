"""The tab *Find*: a phrase to boxes, drawn in the picture and listed."""

from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from ...blocks.chat.text_generation import TextGenerationOptions
from ...blocks.errors import PictureError, PromptError
from ...vl2.grounding import Box, Grounding, draw_boxes, parse_grounding
from ...vl2.prompts import locate_prompt
from ..pipelines import explain_memory
from .ask_tab import open_upload
from .components import Stopped, Update, choose_model, failure, follow, gr, in_line, told
from .jobs import Job, Jobs, Waiting
from .models import Served, by_name

TAB = "find"
_HEADERS = ["what", "left", "top", "right", "bottom"]


class FindTab:
    """Components and handlers. Handlers return updates by component."""

    def __init__(self, models: Sequence[Served], jobs: Jobs) -> None:
        self.models, self.jobs = [served for served in models if served.finds], jobs
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self.model = choose_model(self.models)
                # A `gr.Image` would open what is uploaded before we can say in words that it is no picture.
                self.upload = gr.File(label="Picture", type="filepath", height=120, elem_id="find-picture")
                self.phrase = gr.Textbox(
                    label="What to find", placeholder="such as: the red star", elem_id="phrase"
                )
                with gr.Row():
                    self.go = gr.Button("Find", variant="primary", min_width=130, elem_id="find")
                    self.halt = gr.Button(
                        "Stop", variant="stop", interactive=False, min_width=130, elem_id="stop-finding"
                    )
            with gr.Column(scale=1, min_width=300):
                self.status = gr.HTML(
                    told("Give a picture and say what to find in it."),
                    elem_id="find-status",
                    elem_classes="bf-flush",
                )
                self.drawn = gr.Image(
                    label="Picture",
                    show_label=False,
                    format="png",
                    buttons=["download", "fullscreen"],
                    interactive=False,
                    height=300,
                    elem_id="found",
                    visible=False,
                )
                self.table = gr.Dataframe(
                    headers=_HEADERS,
                    label="Boxes, in pixels",
                    interactive=False,
                    visible=False,
                    elem_id="boxes",
                )
        self._connect()

    def _connect(self) -> None:
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        shown = [self.status, self.drawn, self.table, self.go, self.halt]
        gr.on(
            [self.go.click, self.phrase.submit],
            self.find,
            [self.model, self.upload, self.phrase],
            shown,
            show_progress="hidden",
            concurrency_id="jobs",
            api_visibility="private",
        )
        self.upload.upload(
            self.look, [self.upload], [self.upload, self.status, self.drawn, self.table], **quick
        )
        self.halt.click(self.stop, None, [self.halt], **quick)

    def look(self, file: str | None) -> Update:
        """Show an upload; or say at once what is wrong with it, and take it away."""
        hidden = {self.drawn: gr.update(visible=False), self.table: gr.update(visible=False)}
        try:
            if file is None:
                return hidden
            shown = gr.update(value=open_upload(file), visible=True)
        except PictureError as error:
            return hidden | {self.upload: None, self.status: failure(error)}
        return hidden | {self.drawn: shown, self.status: told("Now say what to find in it.")}

    def find(self, model: str, file: str | None, phrase: str, request: gr.Request) -> Iterator[Update]:
        """Updates until the boxes are there, the visitor stops it, or a mistake is told."""
        idle = {self.go: gr.update(interactive=True), self.halt: gr.update(interactive=False)}
        try:
            served = by_name(self.models, model)
            if file is None:
                raise PictureError("there is no picture; add the one to search in")
            if not phrase.strip():
                raise PromptError("the phrase is empty; say what to find, such as: the red star")
            picture = open_upload(file)
            job = Job(served.line, lambda job: _find(job, served, picture, phrase.strip()))
            self.jobs.add(request.session_hash, TAB, job)
            yield {
                self.status: told("Looking …"),
                self.drawn: gr.update(value=picture, visible=True),
                self.table: gr.update(visible=False),
                self.go: gr.update(interactive=False),
                self.halt: gr.update(interactive=True),
            }
            for update in follow(self.jobs, request.session_hash, TAB, job):
                waiting = isinstance(update, Waiting)
                yield {self.status: in_line(update) if waiting else told(f"Looking … {update}")}
            yield idle | self._done(served, picture, phrase.strip(), *job.result)
        except Stopped:
            yield idle | {self.status: told("Stopped.")}
        except Exception as error:
            yield idle | {self.status: failure(error)}

    def _done(self, served: Served, picture: Image.Image, phrase: str, found: Grounding, text: str) -> Update:
        boxes = found.boxes
        unread = (
            f" {len(found.problems)} pieces of the answer can't be read as boxes." if found.problems else ""
        )
        if not boxes:
            said = f" It said: {text[:300]}" if text.strip() else ""
            return {self.status: told(f"{served.name} finds no “{phrase}”.{unread}{said}")}
        places = "one place" if len(boxes) == 1 else f"{len(boxes)} places"
        return {
            self.status: told(f"{served.name} finds “{phrase}” in {places}.{unread}"),
            self.drawn: gr.update(value=draw_boxes(picture, boxes), visible=True),
            self.table: gr.update(value=[_row(box) for box in boxes], visible=True),
        }

    def stop(self, request: gr.Request) -> Update:
        self.jobs.stop(request.session_hash, TAB)
        return {self.halt: gr.update(interactive=False)}


def _row(box: Box) -> list[str | int]:
    return [box.label, *box.pixels]


def _find(job: Job, served: Served, picture: Image.Image, phrase: str) -> tuple[Grounding, str]:
    """What `VL2Pipeline.ground` gives, and the bare text; piece by piece, so that it can be stopped."""
    from ...vl2.pipeline import VL2Pipeline

    pipe = served.pipe
    assert isinstance(pipe, VL2Pipeline)
    text, tokens = "", TextGenerationOptions.max_new_tokens
    with explain_memory("looking", lambda: "accepted: a smaller picture"):
        for piece in pipe.chat(pipe.question_messages(picture, locate_prompt(phrase)), tokens, stream=True):
            text += piece
            found = parse_grounding(text, picture.size)
            job.tell(f"{len(found.boxes)} so far" if found.boxes else "")
    return parse_grounding(text, picture.size), text
