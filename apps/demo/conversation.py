"""What the tab *Ask* keeps of a conversation, and a visitor's message as it is read from the text box."""

from dataclasses import dataclass, field
from typing import Any

from ...blocks.errors import PictureError, PromptError
from ...text.thought_text import ThoughtSplitter

MAX_PICTURES = 6
"""Images that one message may hold."""

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
            raise PromptError("the question is empty; write something")
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


def last_file(messages: Messages) -> str | None:
    """The file of the last image in some messages: the one that boxes refer to."""
    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    files = [part["image"] for content in contents for part in content if part["type"] == "image"]
    return files[-1] if files else None


def shown_thought(text: str, thinks: bool, last: bool) -> Messages:
    """An answer so far for the chatbot, and before it the thought that it begins with if the model `thinks`.
    Of the `last` text nothing is held back."""
    splitter = ThoughtSplitter(thinks)
    thought, answer = splitter.feed(text, last)
    shown: Messages = []
    if thought:
        going_on = splitter.inside and not last
        metadata = {
            "title": "Thinking" if going_on else "Thought",
            "status": "pending" if going_on else "done",
        }
        shown.append({"role": "assistant", "content": thought, "metadata": metadata})
    if answer.strip():
        shown.append({"role": "assistant", "content": answer.strip()})
    return shown
