"""The tab *Ask*: a conversation about pictures, written as it comes."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ...blocks.chat.image_io import open_image, write_png
from ...blocks.chat.text_generation import TextGenerationOptions
from ...blocks.errors import PictureError, PromptError
from ...vl2.grounding import draw_boxes, parse_grounding
from ..files import write_new
from ..pipelines import explain_memory
from .components import Stopped, Update, choose_model, failure, follow, gr, in_line, seconds, told
from .jobs import Job, Jobs, Waiting
from .models import Served, by_name

TAB = "ask"
MAX_PICTURES = 6
"""Pictures that one message may bring."""
MAX_TOKENS = 2048
_HELLO = "Add pictures with the clip, ask something about them, and go on asking."

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Talk:
    """A conversation: as the model reads it (OpenAI's form of messages), and as the page shows it."""

    messages: Messages = field(default_factory=list)
    shown: Messages = field(default_factory=list)


@dataclass(frozen=True)
class Turn:
    """What a visitor has just said, opened and checked."""

    text: str
    files: list[str]
    pictures: list[Image.Image]

    @classmethod
    def read(cls, said: dict[str, Any]) -> "Turn":
        """From the text box; a `PromptError` or a `PictureError` where something is off."""
        text, files = (said.get("text") or "").strip(), said.get("files") or []
        if not text:
            raise PromptError("the question is empty; write something about the pictures")
        if len(files) > MAX_PICTURES:
            raise PictureError(
                f"these are {len(files)} pictures; accepted: up to {MAX_PICTURES} in a message"
            )
        return cls(text, files, [open_upload(file) for file in files])

    @property
    def message(self) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in self.pictures]
        return {"role": "user", "content": [*parts, {"type": "text", "text": self.text}]}

    @property
    def shown(self) -> dict[str, Any]:
        return {"role": "user", "content": [*({"path": file} for file in self.files), self.text]}


def open_upload(file: str) -> Image.Image:
    """An uploaded picture; the `PictureError` names it as the visitor does, without the server's folders."""
    try:
        return open_image(file)
    except PictureError as error:
        raise PictureError(str(error).replace(repr(file), repr(Path(file).name))) from error


def is_picture(file: str) -> bool:
    try:
        open_image(file)
    except PictureError:
        return False
    return True


class AskTab:
    """Components and handlers. Handlers return updates by component; `folder` takes pictures of boxes."""

    def __init__(self, models: Sequence[Served], jobs: Jobs, folder: Path) -> None:
        self.models, self.jobs, self.folder = list(models), jobs, folder
        self.model = choose_model(self.models)
        self.chat = gr.Chatbot(
            label="Conversation",
            show_label=False,
            height=400,
            placeholder=_HELLO,
            latex_delimiters=[],
            allow_tags=False,
            buttons=["copy"],
            feedback_options=None,
            elem_id="chat",
        )
        self.status = gr.HTML(told(_HELLO), elem_id="ask-status", elem_classes="bf-flush")
        self.box = gr.MultimodalTextbox(
            show_label=False,
            file_count="multiple",
            sources=["upload"],
            placeholder="Ask about the pictures",
            elem_id="question",
        )
        with gr.Row():
            self.halt = gr.Button(
                "Stop", variant="stop", size="sm", interactive=False, min_width=110, elem_id="stop-answer"
            )
            self.reset = gr.Button("New conversation", size="sm", min_width=110, elem_id="new-conversation")
        with gr.Accordion("Settings", open=False), gr.Row():
            self._settings()
        self.talk = gr.State(None)
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
            [self.model, self.box, self.talk, self.temperature, self.tokens, self.seed],
            [self.chat, self.box, self.status, self.halt, self.talk],
            show_progress="hidden",
            concurrency_id="jobs",
            api_visibility="private",
        )
        self.halt.click(self.stop, None, [self.halt], **quick)
        gr.on(
            [self.reset.click, self.chat.clear],
            self.forget,
            None,
            [self.chat, self.status, self.talk],
            **quick,
        )

    def answer(
        self,
        model: str,
        said: dict[str, Any],
        talk: Talk | None,
        temperature: float,
        tokens: int,
        seed: int | None,
        request: gr.Request,
    ) -> Iterator[Update]:
        """Updates until the answer is whole or stopped. A turn without an answer goes back into the box."""
        talk = talk or Talk()
        text = ""
        try:
            served = by_name(self.models, model)
            options = TextGenerationOptions(max_new_tokens=tokens, temperature=temperature)
            turn = Turn.read(said)
            messages = [*talk.messages, turn.message]
            job = Job(served.line, lambda job: _answer(job, served, messages, options, seed))
            self.jobs.add(request.session_hash, TAB, job)
            yield self._starting([*talk.shown, turn.shown])
            started = time.monotonic()
            for update in follow(self.jobs, request.session_hash, TAB, job):
                if isinstance(update, Waiting):
                    yield {self.status: in_line(update)}
                    continue
                text = update
                yield {
                    self.chat: [*talk.shown, turn.shown, self._shown(text, served, None)],
                    self.status: told(f"{served.name} is writing …"),
                }
            took = seconds(time.monotonic() - started)
            yield self._end(talk, turn, job.result, served, f"{served.name} answered in {took}.")
        except Stopped:
            yield self._end(talk, turn, text, served, "Stopped. The answer stays as it is.")
        except Exception as error:
            yield self._back(talk, said, failure(error), isinstance(error, PictureError))

    def _starting(self, shown: Messages) -> Update:
        return {
            self.chat: shown,
            self.box: gr.update(value={"text": "", "files": []}, interactive=False),
            self.halt: gr.update(interactive=True),
            self.status: told("Looking …"),
        }

    def _end(self, talk: Talk, turn: Turn, text: str, served: Served, status: str) -> Update:
        """Keep the turn; one without any answer is as if it had not been."""
        if not text.strip():
            said = {"text": turn.text, "files": turn.files}
            return self._back(talk, said, told(f"There is no answer from {served.name}."), False)
        messages = [*talk.messages, turn.message, {"role": "assistant", "content": text.strip()}]
        shown = [*talk.shown, turn.shown, self._shown(text, served, _last_picture(messages))]
        return {
            self.chat: shown,
            self.talk: Talk(messages, shown),
            self.status: told(status),
            self.box: gr.update(interactive=True),
            self.halt: gr.update(interactive=False),
        }

    def _back(self, talk: Talk, said: dict[str, Any], status: str, check: bool) -> Update:
        """The question is in the box again, without files that are no pictures (if `check`)."""
        files = [file for file in said.get("files") or () if not check or is_picture(file)]
        return {
            self.chat: talk.shown,
            self.status: status,
            self.box: gr.update(value={"text": said.get("text") or "", "files": files}, interactive=True),
            self.halt: gr.update(interactive=False),
        }

    def _shown(self, text: str, served: Served, picture: Image.Image | None) -> dict[str, Any]:
        """An answer as the page shows it: without marks, and with its boxes drawn in `picture`."""
        if not served.finds:
            return {"role": "assistant", "content": text}
        found = parse_grounding(text, picture.size if picture else (1, 1))
        content: list[Any] = [found.text]
        if picture is not None and found.boxes:
            drawn = draw_boxes(picture, found.boxes)
            file = write_new(self.folder / "boxes.png", lambda stream: write_png(drawn, stream))
            content.append({"path": str(file), "alt_text": "the picture with boxes"})
        return {"role": "assistant", "content": content}

    def stop(self, request: gr.Request) -> Update:
        self.jobs.stop(request.session_hash, TAB)
        return {self.halt: gr.update(interactive=False)}

    def forget(self, request: gr.Request) -> Update:
        self.jobs.stop(request.session_hash, TAB)
        return {self.chat: [], self.status: told(_HELLO), self.talk: None}


def _last_picture(messages: Messages) -> Image.Image | None:
    """The picture that the newest message with pictures shows last: where boxes belong."""
    for message in reversed(messages):
        if isinstance(message["content"], list):
            pictures = [part["image"] for part in message["content"] if part["type"] == "image"]
            if pictures:
                return pictures[-1]
    return None


def _answer(
    job: Job, served: Served, messages: Messages, options: TextGenerationOptions, seed: int | None
) -> str:
    """The answer; tells what there is of it after every piece."""
    text = ""
    with explain_memory("answering", lambda: "accepted: fewer pictures or a shorter answer"):
        pieces = served.pipe.chat(
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
            job.tell(text)
    return text
