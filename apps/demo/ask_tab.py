"""The tab *Ask*: a conversation about images, streamed."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ...blocks.chat.text_generation import TextGenerationOptions
from ...blocks.errors import PictureError, PromptError
from ...blocks.image_fit import FittedImage
from ...vl2.grounding import parse_grounding
from ..pipelines import explain_out_of_memory
from .components import (
    Stopped,
    Update,
    choose_model,
    error_status,
    follow,
    gr,
    queue_status,
    seconds,
    status_html,
)
from .drawing import draw_large
from .history import example_files
from .jobs import Job, Jobs, Waiting
from .models import LoadedModel, find_model
from .pictures import PictureWriter, is_readable, read_pictures

TAB = "ask"
MAX_PICTURES = 6
"""Images that one message may hold."""
MAX_TOKENS = 2048
_HELLO = "Add pictures with the clip, ask something about them, and go on asking."
_READY = "Nothing was asked yet."

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Conversation:
    """A conversation: OpenAI-style `messages` for the model, and `shown`, the chatbot's."""

    messages: Messages = field(default_factory=list)
    shown: Messages = field(default_factory=list)


@dataclass(frozen=True)
class Turn:
    """A visitor's message."""

    text: str
    files: list[str]

    @classmethod
    def read(cls, value: dict[str, Any]) -> "Turn":
        """From the text box's value. Raises `PromptError`, and `PictureError` for too many pictures."""
        text, files = (value.get("text") or "").strip(), value.get("files") or []
        if not text:
            raise PromptError("the question is empty; write something about the pictures")
        if len(files) > MAX_PICTURES:
            raise PictureError(
                f"these are {len(files)} pictures; accepted: up to {MAX_PICTURES} in a message"
            )
        return cls(text, files)

    @property
    def message(self) -> dict[str, Any]:
        """The message for the model, with its images as files."""
        parts: list[dict[str, Any]] = [{"type": "image", "image": file} for file in self.files]
        return {"role": "user", "content": [*parts, {"type": "text", "text": self.text}]}

    @property
    def shown(self) -> dict[str, Any]:
        """The message for the chatbot."""
        return {"role": "user", "content": [*({"path": file} for file in self.files), self.text]}


class AskTab:
    """Components and event handlers. Handlers return updates by component; images of boxes go to `folder`."""

    def __init__(self, models: Sequence[LoadedModel], jobs: Jobs, folder: Path) -> None:
        self.models, self.jobs, self.writer = list(models), jobs, PictureWriter(folder)
        self.model = choose_model(self.models)
        self.chat = gr.Chatbot(
            label="Conversation",
            show_label=False,
            height=360,
            placeholder=_HELLO,
            latex_delimiters=[],
            allow_tags=False,
            buttons=["copy"],
            feedback_options=None,
            elem_id="chat",
        )
        self.status = gr.HTML(status_html(_READY), elem_id="ask-status", elem_classes="bf-flush")
        self.box = gr.MultimodalTextbox(
            show_label=False,
            file_count="multiple",
            sources=["upload"],
            placeholder="Ask about the pictures",
            elem_id="question",
        )
        asked = zip(("What color is the star?", "How many hearts are there?"), example_files(), strict=False)
        gr.Examples([{"text": text, "files": [str(file)]} for text, file in asked], self.box)
        with gr.Row():
            self.stop_button = gr.Button(
                "Stop", variant="stop", size="sm", interactive=False, min_width=110, elem_id="stop-answer"
            )
            self.reset = gr.Button("New conversation", size="sm", min_width=110, elem_id="new-conversation")
        with gr.Accordion("Settings", open=False), gr.Row():
            self._settings()
        self.conversation = gr.State(None)
        self._connect()

    def _settings(self) -> None:
        self.temperature = gr.Slider(
            0,
            2,
            value=TextGenerationOptions.temperature,
            step=0.05,
            label="Temperature",
            info="0 always takes the likeliest word",
            min_width=130,
        )
        self.tokens = gr.Slider(
            1,
            MAX_TOKENS,
            value=TextGenerationOptions.max_new_tokens,
            step=1,
            label="Longest answer",
            info="in tokens",
            min_width=130,
        )
        self.seed = gr.Number(
            label="Seed", info="of sampling", precision=0, value=None, placeholder="random", min_width=130
        )

    def _connect(self) -> None:
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        self.box.submit(
            self.answer,
            [self.model, self.box, self.conversation, self.temperature, self.tokens, self.seed],
            [self.chat, self.box, self.status, self.stop_button, self.conversation],
            show_progress="hidden",
            concurrency_id="jobs",
            api_visibility="private",
        )
        self.stop_button.click(self.stop, None, [self.stop_button], **quick)
        gr.on(
            [self.reset.click, self.chat.clear],
            self.forget,
            None,
            [self.chat, self.status, self.conversation],
            **quick,
        )

    def answer(
        self,
        model: str,
        value: dict[str, Any],
        conversation: Conversation | None,
        temperature: float,
        tokens: int,
        seed: int | None,
        request: gr.Request,
    ) -> Iterator[Update]:
        """Handle a question: yield updates until the answer is complete or stopped.

        A question that got no answer is put back into the text box.
        """
        conversation = conversation or Conversation()
        text, last = "", None
        try:
            loaded = find_model(self.models, model)
            options = TextGenerationOptions(max_new_tokens=tokens, temperature=temperature)
            turn = Turn.read(value)
            messages, last = read_pictures([*conversation.messages, turn.message], loaded)
            job = Job(loaded.queue, lambda job: answer_job(job, loaded, messages, options, seed))
            self.jobs.add(request.session_hash, TAB, job)
            yield self._start_updates([*conversation.shown, turn.shown])
            started = time.monotonic()
            for update in follow(self.jobs, request.session_hash, TAB, job):
                if isinstance(update, Waiting):
                    yield {self.status: queue_status(update)}
                    continue
                text = update
                yield {
                    self.chat: [*conversation.shown, turn.shown, self._shown(text, loaded)],
                    self.status: status_html(f"{loaded.name} is writing …"),
                }
            took = seconds(time.monotonic() - started)
            yield self._end(
                conversation, turn, job.result, loaded, last, f"{loaded.name} answered in {took}."
            )
        except Stopped:
            yield self._end(conversation, turn, text, loaded, last, "Stopped. The answer stays as it is.")
        except Exception as error:
            drop_unreadable = isinstance(error, PictureError)
            yield self._restore_question(conversation, value, error_status(error), drop_unreadable)

    def _start_updates(self, shown: Messages) -> Update:
        return {
            self.chat: shown,
            self.box: gr.update(value={"text": "", "files": []}, interactive=False),
            self.stop_button: gr.update(interactive=True),
            self.status: status_html("Looking …"),
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
        answer = self._shown(text, loaded, _last_file(messages), last.size if last else (1, 1))
        shown = [*conversation.shown, turn.shown, answer]
        return {
            self.chat: shown,
            self.conversation: Conversation(messages, shown),
            self.status: status_html(status),
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
        self, text: str, loaded: LoadedModel, file: str | None = None, size: tuple[int, int] = (1, 1)
    ) -> dict[str, Any]:
        """An answer for the chatbot: without grounding tags, and with its boxes drawn in an image file."""
        if not loaded.locates:
            return {"role": "assistant", "content": text}
        grounding = parse_grounding(text, size)
        content: list[Any] = [grounding.text]
        if file is not None and grounding.boxes:
            drawn = self.writer.write(file, partial(draw_large, boxes=grounding.boxes))
            content.append({"path": drawn, "alt_text": "the picture with boxes"})
        return {"role": "assistant", "content": content}

    def stop(self, request: gr.Request) -> Update:
        """Handle *Stop*."""
        self.jobs.stop(request.session_hash, TAB)
        return {self.stop_button: gr.update(interactive=False)}

    def forget(self, request: gr.Request) -> Update:
        """Handle *New conversation*."""
        self.jobs.stop(request.session_hash, TAB)
        return {self.chat: [], self.status: status_html(_READY), self.conversation: None}


def _last_file(messages: Messages) -> str | None:
    """The file of the last image in some messages: the one that boxes refer to."""
    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    files = [part["image"] for content in contents for part in content if part["type"] == "image"]
    return files[-1] if files else None


def answer_job(
    job: Job, loaded: LoadedModel, messages: Messages, options: TextGenerationOptions, seed: int | None
) -> str:
    """Stream the answer, reporting its text after every piece; returns the whole."""
    text = ""
    with explain_out_of_memory("answering", lambda: "accepted: fewer pictures or a shorter answer"):
        pieces = loaded.pipe.chat(
            messages,
            options.max_new_tokens,
            options.temperature,
            options.top_p,
            seed,
            stream=True,
            local_files=False,
        )
        for piece in pieces:
            text += piece
            job.report(text)
    return text
