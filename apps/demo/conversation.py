"""What the tab *Ask* keeps of a conversation, and a visitor's message as it is read from the text box."""

from dataclasses import dataclass, field
from typing import Any

from ...blocks.errors import PictureError, PromptError

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


def last_file(messages: Messages) -> str | None:
    """The file of the last image in some messages: the one that boxes refer to."""
    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    files = [part["image"] for content in contents for part in content if part["type"] == "image"]
    return files[-1] if files else None
