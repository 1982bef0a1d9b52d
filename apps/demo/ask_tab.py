"""The tab *Ask*: a conversation, about images where the model reads them, streamed."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...blocks.chat.text_generation import TextGenerationOptions
from ...blocks.errors import PictureError
from ...blocks.image_fit import FittedImage
from ...text.prompts import THINK_END
from ...vl2.grounding import parse_grounding
from ..pipelines import explain_out_of_memory
from .answer_settings import AnswerSettings, read_limit
from .components import (
    Stopped,
    Update,
    choose_model,
    error_status,
    follow,
    follow_on_phone,
    gr,
    queue_status,
    seconds,
    status_html,
)
from .conversation import Conversation, Messages, Turn, last_file, shown_thought
from .drawing import draw_large
from .history import Tries
from .image_form import read_seed
from .jobs import Job, Jobs, Waiting
from .models import LoadedModel, find_model
from .pictures import PictureWriter, is_readable, read_pictures
from .suggestions import question_about

TAB = "ask"
_HELLO = "Add pictures with the clip, ask something about them, and go on asking."
_HELLO_TEXT = "Ask something, and go on asking."
_READY = "Type a question and press Enter, or click an example."
_READY_TEXT = "Type a question and press Enter."


class AskTab:
    """Components and event handlers. Handlers return updates by component; images of boxes go to `folder`."""

    def __init__(self, models: Sequence[LoadedModel], jobs: Jobs, folder: Path) -> None:
        # Models that only read come first: they read better than those that also paint.
        self.models = sorted(models, key=lambda loaded: not loaded.locates)
        self.jobs, self.writer = jobs, PictureWriter(folder)
        self.model, first = choose_model(self.models), self.models[0]
        self.chat = gr.Chatbot(
            label="Conversation",
            show_label=False,
            height=360,
            placeholder=_HELLO if first.sees else _HELLO_TEXT,
            latex_delimiters=[],
            allow_tags=False,
            buttons=["copy"],
            feedback_options=None,
            elem_id="chat",
        )
        self.status = gr.HTML(_ready(first), elem_id="ask-status", elem_classes="bf-flush")
        self.box = gr.MultimodalTextbox(
            show_label=False,
            file_count="multiple",
            elem_id="question",
            **_box(first),
        )
        with gr.Row(elem_classes="bf-left"):
            self.stop_button = gr.Button(
                "Stop", variant="stop", size="sm", interactive=False, min_width=110, elem_id="stop-answer"
            )
            self.reset = gr.Button("New conversation", size="sm", min_width=110, elem_id="new-conversation")
        with gr.Accordion("Settings", open=False), gr.Row():
            self.settings = AnswerSettings(first)
        self.tries = Tries("ask-examples", question_about)
        self.tries.view.visible = first.sees
        self.conversation = gr.State(None)
        self._connect()

    def _connect(self) -> None:
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        inputs = [self.model, self.box, self.conversation, *self.settings.components]
        shown = [self.chat, self.box, self.status, self.stop_button, self.conversation]
        job: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "jobs"}
        job["api_visibility"] = "private"
        self.box.submit(self.answer, inputs, shown, **job)
        example = gr.State(None)  # the box's value passes through the browser, which may send an older one
        tried = self.tries.view.click(self.use_example, None, [example], **quick)
        tried.then(**follow_on_phone("chat"))
        tried.then(self.answer, [inputs[0], example, *inputs[2:]], shown, **job)
        changed = [*self.settings.components, self.chat, self.box, self.status, self.tries.view]
        self.model.change(self.use_model, [self.model], changed, **quick)
        self.stop_button.click(self.stop, None, [self.stop_button], **quick)
        gr.on(
            [self.reset.click, self.chat.clear],
            self.forget,
            [self.model],
            [self.chat, self.status, self.conversation],
            **quick,
        )

    def use_example(self, event: gr.EventData) -> dict[str, Any]:
        """Handle a click on an example: put it into the text box."""
        file, question = self.tries.read(event)
        return {"text": question, "files": [file]}

    def use_model(self, model: str) -> Update:
        """Handle the choice of a model: its settings, and pictures only where it reads them."""
        loaded = find_model(self.models, model)
        return self.settings.for_model(loaded) | {
            self.chat: gr.update(placeholder=_HELLO if loaded.sees else _HELLO_TEXT),
            self.box: gr.update(**_box(loaded)),
            self.status: _ready(loaded),
            self.tries.view: gr.update(visible=loaded.sees),
        }

    def answer(
        self,
        model: str,
        value: dict[str, Any],
        conversation: Conversation | None,
        temperature: float,
        tokens: int,
        thinking: str | None,
        seed: str | None,
        request: gr.Request,
    ) -> Iterator[Update]:
        """Handle a question: yield updates until the answer is complete or stopped.

        A question that got no answer is put back into the text box.
        """
        conversation = conversation or Conversation()
        text, last = "", None
        try:
            loaded = find_model(self.models, model)
            options = TextGenerationOptions(tokens, temperature, loaded.pipe.top_p)
            numbers = read_seed(seed), read_limit(thinking, loaded)
            turn = Turn.read(value)
            messages, last = read_pictures([*conversation.messages, turn.message], loaded)
            job = Job(loaded.queue, lambda job: answer_job(job, loaded, messages, options, *numbers))
            self.jobs.add(request.session_hash, TAB, job)
            yield self._start_updates([*conversation.shown, turn.shown], loaded)
            started = time.monotonic()
            for update in follow(self.jobs, request.session_hash, TAB, job):
                if isinstance(update, Waiting):
                    yield {self.status: queue_status(update)}
                    continue
                text = update
                yield {
                    self.chat: [*conversation.shown, turn.shown, *self._shown(text, loaded)],
                    self.status: status_html(f"{loaded.name} is writing …"),
                }
            took = seconds(time.monotonic() - started)
            status = f"{loaded.name} answered in {took}."
            if loaded.thinks and THINK_END not in job.result:
                status = f"The thought was cut off after {took}: allow a longer answer, or a shorter thought."
            yield self._end(conversation, turn, job.result, loaded, last, status)
        except Stopped:
            yield self._end(conversation, turn, text, loaded, last, "Stopped. The answer stays as it is.")
        except Exception as error:
            drop_unreadable = isinstance(error, PictureError)
            yield self._restore_question(conversation, value, error_status(error), drop_unreadable)

    def _start_updates(self, shown: Messages, loaded: LoadedModel) -> Update:
        return {
            self.chat: shown,
            self.box: gr.update(value={"text": "", "files": []}, interactive=False),
            self.stop_button: gr.update(interactive=True),
            self.status: status_html("Looking …" if loaded.sees else "Reading …"),
        }

    def _end(
        self,
        conversation: Conversation,
        turn: Turn,
        text: str,
        loaded: LoadedModel,
        last: FittedImage | None,
        status: str,
    ) -> Update:
        """Add the turn to the conversation, unless there is no answer. Boxes are in the `last` image."""
        if not text.strip():
            value = {"text": turn.text, "files": turn.files}
            no_answer = status_html(f"There is no answer from {loaded.name}.")
            return self._restore_question(conversation, value, no_answer, drop_unreadable=False)
        messages = [*conversation.messages, turn.message, {"role": "assistant", "content": text.strip()}]
        file, size = last_file(messages), last.size if last else (1, 1)
        shown = [*conversation.shown, turn.shown, *self._shown(text, loaded, file, size, last=True)]
        return {
            self.chat: shown,
            self.conversation: Conversation(messages, shown),
            self.status: status_html(status, warning=loaded.pipe.unknown_words([turn.text], "reading")),
            self.box: gr.update(interactive=True),
            self.stop_button: gr.update(interactive=False),
        }

    def _restore_question(
        self, conversation: Conversation, value: dict[str, Any], status: str, drop_unreadable: bool
    ) -> Update:
        """Put the question back into the text box; `drop_unreadable` drops files that can't be opened."""
        files = [file for file in value.get("files") or () if not drop_unreadable or is_readable(file)]
        return {
            self.chat: conversation.shown,
            self.status: status,
            self.box: gr.update(value={"text": value.get("text") or "", "files": files}, interactive=True),
            self.stop_button: gr.update(interactive=False),
        }

    def _shown(
        self,
        text: str,
        loaded: LoadedModel,
        file: str | None = None,
        size: tuple[int, int] = (1, 1),
        last: bool = False,
    ) -> Messages:
        """An answer for the chatbot: without grounding tags, and with its boxes drawn in an image file; a
        thought is a message of its own, which is folded once it is over. The `last` update holds nothing
        back."""
        if not loaded.sees:
            return shown_thought(text, loaded.thinks, last)
        if not loaded.locates:
            return [{"role": "assistant", "content": text}]
        grounding = parse_grounding(text, size)
        content: list[Any] = [grounding.text]
        if file is not None and grounding.boxes:
            drawn = self.writer.write(file, partial(draw_large, boxes=grounding.boxes))
            content.append({"path": drawn})
        return [{"role": "assistant", "content": content}]

    def stop(self, request: gr.Request) -> Update:
        """Handle *Stop*."""
        self.jobs.stop(request.session_hash, TAB)
        return {self.stop_button: gr.update(interactive=False)}

    def forget(self, model: str, request: gr.Request) -> Update:
        """Handle *New conversation*."""
        self.jobs.stop(request.session_hash, TAB)
        ready = _ready(find_model(self.models, model))
        return {self.chat: [], self.status: ready, self.conversation: None}


def _ready(loaded: LoadedModel) -> str:
    return status_html(_READY if loaded.sees else _READY_TEXT)


def _box(loaded: LoadedModel) -> dict[str, Any]:
    """What the text box of a model takes."""
    if loaded.sees:
        return {"sources": ["upload"], "placeholder": "Ask about the pictures"}
    return {"sources": [], "placeholder": "Ask something"}


def answer_job(
    job: Job,
    loaded: LoadedModel,
    messages: Messages,
    options: TextGenerationOptions,
    seed: int | None,
    max_thinking_tokens: int | None = None,
) -> str:
    """Stream the answer, reporting its text after every piece; returns the whole."""
    text, more = "", dict[str, Any]()
    if max_thinking_tokens is not None:
        more["max_thinking_tokens"] = max_thinking_tokens
    advice = "accepted: fewer pictures or a shorter answer" if loaded.sees else "accepted: a shorter answer"
    with explain_out_of_memory("answering", lambda: advice):
        pieces = loaded.pipe.chat(
            messages,
            options.max_new_tokens,
            options.temperature,
            options.top_p,
            seed,
            stream=True,
            local_files=False,
            **more,
        )
        for piece in pieces:
            text += piece
            job.report(text)
    return text
