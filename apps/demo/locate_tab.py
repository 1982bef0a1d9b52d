"""The tab *Find*: boxes for a phrase, drawn in the image and listed."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...blocks.chat.text_generation import TextGenerationOptions
from ...blocks.errors import PictureError, PromptError
from ...blocks.image_fit import FittedImage
from ...vl2.grounding import Box, Grounding, parse_grounding
from ...vl2.prompts import locate_prompt
from ..pipelines import explain_out_of_memory
from .components import (
    Stopped,
    Update,
    choose_model,
    error_status,
    follow,
    follow_on_phone,
    gr,
    queue_status,
    status_html,
)
from .drawing import draw_large
from .history import Tries
from .jobs import Job, Jobs, Waiting
from .models import LoadedModel, find_model
from .pictures import PictureWriter, read_upload
from .suggestions import phrase_for, phrase_of

TAB = "find"
_HEADERS = ["what", "left", "top", "right", "bottom"]
_HELLO = "Add a picture, say what to find in it and press Enter, or click an example."


class LocateTab:
    """Components and event handlers. Handlers return updates by component."""

    def __init__(self, models: Sequence[LoadedModel], jobs: Jobs, folder: Path) -> None:
        self.models, self.jobs = [loaded for loaded in models if loaded.locates], jobs
        self.writer = PictureWriter(folder)
        with gr.Row(elem_classes="bf-columns"):
            with gr.Column(scale=4, min_width=300):
                self.model = choose_model(self.models)
                # A `gr.Image` would open an upload before we can explain that it is not an image.
                self.upload = gr.File(label="Picture", type="filepath", height=120, elem_id="find-picture")
                self.phrase = gr.Textbox(
                    label="What to find",
                    placeholder=f"such as: {phrase_for(self.models[0].pipe.vocabulary)}",
                    elem_id="phrase",
                )
                with gr.Row():
                    self.run_button = gr.Button("Find", variant="primary", min_width=130, elem_id="find")
                    self.stop_button = gr.Button(
                        "Stop", variant="stop", interactive=False, min_width=130, elem_id="stop-finding"
                    )
                self.tries = Tries("find-examples", phrase_of)
            with gr.Column(scale=6, min_width=300, elem_classes="bf-work"):
                self.status = gr.HTML(
                    status_html(_HELLO),
                    elem_id="find-status",
                    elem_classes="bf-flush",
                )
                self.drawn = gr.Image(
                    label="Picture",
                    show_label=False,
                    format="png",
                    buttons=["download", "fullscreen"],
                    interactive=False,
                    elem_id="found",
                    visible=False,
                )
                self.table = gr.Dataframe(
                    headers=_HEADERS,
                    label="Boxes, in pixels",
                    wrap=True,
                    column_widths=["31%", "15%", "15%", "17%", "22%"],
                    interactive=False,
                    visible=False,
                    elem_id="boxes",
                )
        # The picture and phrase of a search that another event begins: those of the form pass through the
        # browser, which may send older ones.
        self.opened = [gr.State(None), gr.State("")]
        self._connect()

    def _connect(self) -> None:
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        self._inputs = [self.model, self.upload, self.phrase]
        self._shown = [self.status, self.drawn, self.table, self.run_button, self.stop_button]
        self._job: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "jobs"}
        self._job["api_visibility"] = "private"
        triggers = [self.run_button.click, self.phrase.submit]
        gr.on(triggers, **follow_on_phone("find-status"))
        gr.on(triggers, self.find, self._inputs, self._shown, **self._job)
        looked = [self.upload, self.status, self.drawn, self.table]
        self.upload.upload(self.look, [self.upload], looked, **quick)
        self.upload.clear(self.clear, None, looked, **quick)
        tried = self.tries.view.click(self.use_example, None, [*looked, self.phrase, *self.opened], **quick)
        self.search_after(tried)
        self.stop_button.click(self.stop, None, [self.stop_button], **quick)

    def search_after(self, event: Any) -> None:
        """Find right after another event, which has put a picture and a phrase in place."""
        event.then(**follow_on_phone("find-status"))
        event.then(self.find, [self.model, *self.opened], self._shown, **self._job)

    def open(self, file: str, phrase: str) -> Update:
        """Put a picture that was not uploaded here, and a phrase, in place for `search_after`."""
        file_state, phrase_state = self.opened
        return self.look(file, keep=True) | {self.phrase: phrase, file_state: file, phrase_state: phrase}

    def use_example(self, event: gr.EventData) -> Update:
        """Handle a click on an example."""
        return self.open(*self.tries.read(event))

    def clear(self) -> Update:
        """Handle the removal of the picture."""
        return self.look(None) | {self.status: status_html(_HELLO)}

    def look(self, file: str | None, keep: bool = False) -> Update:
        """Handle an upload: show it, or say what is wrong with it and remove it. With `keep`, a file that was
        not uploaded here becomes the picture."""
        hidden = {self.drawn: gr.update(visible=False), self.table: gr.update(visible=False)}
        try:
            if file is None:
                return hidden
            shown = gr.update(value=self.writer.write(file, draw_large), visible=True)
        except PictureError as error:
            return hidden | {self.upload: None, self.status: error_status(error)}
        says = status_html("Now say what to find in it.")
        return hidden | {self.drawn: shown, self.status: says} | ({self.upload: file} if keep else {})

    def find(self, model: str, file: str | None, phrase: str, request: gr.Request) -> Iterator[Update]:
        """Handle *Find*: yield updates until the boxes are there, it is stopped, or an error is shown."""
        idle = {self.run_button: gr.update(interactive=True), self.stop_button: gr.update(interactive=False)}
        try:
            loaded = find_model(self.models, model)
            if file is None:
                raise PictureError("there is no picture; add the one to search in")
            phrase = read_phrase(phrase, loaded)
            picture = read_upload(file, loaded.pipe.processor.fit(1))
            job = Job(loaded.queue, lambda job: locate_job(job, loaded, picture, phrase))
            self.jobs.add(request.session_hash, TAB, job)
            yield {
                self.status: status_html("Looking …"),
                self.drawn: gr.update(value=self.writer.write(file, draw_large), visible=True),
                self.table: gr.update(visible=False),
                self.run_button: gr.update(interactive=False),
                self.stop_button: gr.update(interactive=True),
            }
            for update in follow(self.jobs, request.session_hash, TAB, job):
                waiting = isinstance(update, Waiting)
                yield {self.status: queue_status(update) if waiting else status_html(f"Looking … {update}")}
            yield idle | self._end_updates(loaded, file, phrase, *job.result)
        except Stopped:
            yield idle | {self.status: status_html("Stopped.")}
        except Exception as error:
            yield idle | {self.status: error_status(error)}

    def _end_updates(
        self, loaded: LoadedModel, file: str, phrase: str, grounding: Grounding, text: str
    ) -> Update:
        boxes, problems = grounding.boxes, len(grounding.problems)
        unread = f" {problems} pieces of the answer can't be read as boxes." if problems else ""
        unknown = loaded.pipe.unknown_words([phrase], "reading")
        if not boxes:
            said = f" It said: {text[:300]}" if text.strip() else ""
            says = status_html(f"{loaded.name} finds no “{phrase}”.{unread}{said}", warning=unknown)
            return {self.status: says}
        drawn = self.writer.write(file, partial(draw_large, boxes=boxes))
        places = "one place" if len(boxes) == 1 else f"{len(boxes)} places"
        return {
            self.status: status_html(f"{loaded.name} finds “{phrase}” in {places}.{unread}", warning=unknown),
            self.drawn: gr.update(value=drawn, visible=True),
            self.table: gr.update(value=[_row(box) for box in boxes], visible=True),
        }

    def stop(self, request: gr.Request) -> Update:
        """Handle *Stop*."""
        self.jobs.stop(request.session_hash, TAB)
        return {self.stop_button: gr.update(interactive=False)}


def _row(box: Box) -> list[str | int]:
    return [box.label, *box.pixels]


def read_phrase(text: str, loaded: LoadedModel) -> str:
    """The phrase of a text. Raises `PromptError` for an empty one."""
    if phrase := text.strip():
        return phrase
    such = phrase_for(loaded.pipe.vocabulary)
    raise PromptError(f"the phrase is empty; say what to find, such as: {such}")


def locate_job(job: Job, loaded: LoadedModel, picture: FittedImage, phrase: str) -> tuple[Grounding, str]:
    """`VL2Pipeline.ground`, streamed so that it can be stopped; returns the grounding and the raw text."""
    from ...vl2.pipeline import VL2Pipeline

    pipe = loaded.pipe
    assert isinstance(pipe, VL2Pipeline)
    text, tokens = "", TextGenerationOptions.max_new_tokens
    with explain_out_of_memory("looking", lambda: "accepted: a smaller picture"):
        for piece in pipe.chat(pipe.question_messages(picture, locate_prompt(phrase)), tokens, stream=True):
            text += piece
            boxes = parse_grounding(text, picture.size).boxes
            job.report(f"{len(boxes)} so far" if boxes else "")
    return parse_grounding(text, picture.size), text
