"""Single messages of a conversation as parts, and parts of several joined, for `blocks.chat.messages`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import PromptError, shown
from .image_source import as_image_list, part_source
from .special_tokens import PlainText

OPENAI_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
ROLES = OPENAI_ROLES | {
    "<|System|>": "system",
    "<|User|>": "user",
    "<|Assistant|>": "assistant",
    "System": "system",
    "User": "user",
    "Assistant": "assistant",
}


@dataclass(frozen=True)
class Part:
    """A text, or an image token and a newline, of message `number`, and one image source per token."""

    number: int
    text: str
    sources: Sequence[Any] = ()


def pictures_first(parts: list[Part], mark: str) -> list[Part]:
    """The parts with the last text behind all images."""
    texts = [index for index, part in enumerate(parts) if part.text != mark]
    if texts:
        parts.append(parts.pop(texts[-1]))
    return parts


def join_parts(parts: Sequence[Part], mark: str) -> list[str]:
    """The pieces of a turn's text. Between two texts there is a newline, of two messages a blank line."""
    pieces: list[str] = []
    one_message = parts[0].number == parts[-1].number
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        text = part.text
        if text != mark and not one_message:
            text = type(text)(text.strip())
        pieces.append(text)
        if text != mark and after is not None:
            if after.number != part.number:
                pieces.append("\n\n")
            elif not text.endswith("\n"):
                pieces.append("\n")
    return pieces


def parse_message(message: Any, number: int, image_token: str) -> tuple[str, list[Part]]:
    """Role, and what is not empty of the content."""
    where = f"message {number}"
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} must be a dict with 'role' and 'content', not {type(message).__name__}")
    given = message.get("role")
    if not isinstance(given, str) or given not in ROLES:
        raise PromptError(f"{where} has the role {shown(given)}; accepted: {', '.join(ROLES)}")
    role, content, images = ROLES[given], message.get("content"), as_image_list(message.get("images"))
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, str):
        official = images or given not in OPENAI_ROLES
        parts = [Part(number, content if official else PlainText(content), images)]
    elif isinstance(content, list | tuple):
        if images:
            raise PromptError(f"{where} has picture parts or 'images', not both: use 'images' with a text")
        parts = [_parse_part(part, number, index, image_token) for index, part in enumerate(content)]
    elif content is None:
        raise PromptError(f"{where} has no content; accepted: a text or a list of parts")
    else:
        raise PromptError(f"{where} has content of type {type(content).__name__}; accepted: a text or parts")
    count = sum(part.text.count(image_token) for part in parts if not isinstance(part.text, PlainText))
    sources = sum(len(part.sources) for part in parts)
    if role != "user" and (count or sources):
        raise PromptError(
            f"{where} ({role}) has a picture or the mark {image_token}; only the user's messages may"
        )
    if count != sources:
        raise PromptError(
            f"{where} has {count} mark(s) {image_token} and {sources} picture(s); their numbers must be equal"
        )
    return role, [part for part in parts if part.text.strip()]


def _parse_part(part: Any, number: int, index: int, image_token: str) -> Part:
    where = f"part {index} of message {number}"
    if not isinstance(part, Mapping):
        raise PromptError(f"{where} must be a dict with a 'type', not {type(part).__name__}")
    kind = part.get("type")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise PromptError(f"{where} must hold a str in 'text'")
        return Part(number, PlainText(part["text"]))
    if kind not in ("image_url", "image", "picture"):
        raise PromptError(f"{where} has the type {shown(kind)}; accepted: text, image_url, image, picture")
    return Part(number, f"{image_token}\n", [part_source(part, where)])
