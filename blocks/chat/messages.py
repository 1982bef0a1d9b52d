"""Conversations: OpenAI's form of messages and the official one, read into one neutral list of turns.

OpenAI's form: `content` is a text, or a list of parts

    {"type": "text", "text": "..."}
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,..." or a path}}   (or the url itself)
    {"type": "image", "image": path, PIL picture or bytes}           ("picture" is accepted for "image")

A picture part becomes the family's mark and a newline. Between two text parts, and between a text and a
picture after it, there is one newline (none is added where the text ends with one). So a picture and "Q" give
"<mark>\\nQ", as the official demos write it, and "Q" and a picture give "Q\\n<mark>\\n".

The official form: `content` is a text that holds the marks, and the pictures are in the message's `images`.

Roles are `system`, `user` and `assistant`, or the official spellings in `ROLES`. An optional system message
comes first, then user and assistant take turns, and the last word is the user's; one empty message of the
assistant may follow it, as the official demos write.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..errors import PromptError
from .image_io import as_list, open_image

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "<|System|>": "system",
    "<|User|>": "user",
    "<|Assistant|>": "assistant",
    "System": "system",
    "User": "user",
    "Assistant": "assistant",
}
_PICTURE_KEYS = ("image", "picture")


@dataclass(frozen=True)
class Turn:
    """One message: its role ("system", "user" or "assistant"), text with marks, a picture per mark (RGB)."""

    role: str
    text: str
    pictures: tuple[Image.Image, ...] = ()


def normalize_messages(messages: Any, mark: str, *, local_files: bool = True) -> list[Turn]:
    """Turns of a conversation, without the empty assistant message that may end it.

    `mark` is what stands for a picture in a text (`<image>`, `<image_placeholder>`). With `local_files` false
    a str names no file, only a `data:` URL is accepted: for messages that come from a network.
    Raises PromptError for a malformed conversation and PictureError for a picture that can't be read.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise PromptError(f"messages must be a list of messages, not {type(messages).__name__}")
    if not messages:
        raise PromptError("messages is an empty list; accepted: at least one message of the user")
    # Every message is read and checked before the first picture is decoded.
    read = [_read_message(message, f"message {i}", mark) for i, message in enumerate(messages)]
    if read[-1][0] == "assistant" and not read[-1][1].strip():
        read.pop()
    _check_order([role for role, _, _ in read])
    turns = []
    for index, (role, text, sources) in enumerate(read):
        if not text.strip():
            raise PromptError(f"message {index} ({role}) is empty; only a last one of the assistant may be")
        pictures = tuple(open_image(source, local_files=local_files) for source in sources)
        turns.append(Turn(role, text, pictures))
    return turns


def _check_order(roles: list[str]) -> None:
    if "system" in roles[1:]:
        raise PromptError(f"message {roles.index('system', 1)} is a system message; it may only come first")
    start = 1 if roles[:1] == ["system"] else 0
    for index, role in enumerate(roles[start:]):
        expected = ("user", "assistant")[index % 2]
        if role != expected:
            raise PromptError(
                f"message {start + index} is the {role}'s, but user and assistant take turns "
                f"(after a system message, the user begins): accepted here is the {expected}'s"
            )
    if roles[start:] == [] or roles[-1] == "assistant":
        raise PromptError(
            "the conversation must end with a message of the user (an empty one of the assistant may follow)"
        )


def _read_message(message: Any, where: str, mark: str) -> tuple[str, str, list[Any]]:
    """Role, text with marks, and the pictures' sources, with as many marks as pictures."""
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} must be a dict with 'role' and 'content', not {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise PromptError(f"{where} has the role {role!r}; accepted: {', '.join(ROLES)}")
    role = ROLES[role]
    content, images = message.get("content"), as_list(message.get("images"))
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, str):
        text, sources = content, images
    elif isinstance(content, list | tuple):
        if images:
            raise PromptError(f"{where} has picture parts or 'images', not both: use 'images' with a text")
        text, sources = _join_parts(content, where, mark)
    elif content is None:
        raise PromptError(f"{where} has no content; accepted: a text or a list of parts")
    else:
        raise PromptError(f"{where} has content of type {type(content).__name__}; accepted: a text or parts")
    marks = text.count(mark)
    if role != "user" and (marks or sources):
        raise PromptError(f"{where} ({role}) has a picture or the mark {mark}; only the user's messages may")
    if marks != len(sources):
        raise PromptError(
            f"{where} has {marks} mark(s) {mark} and {len(sources)} picture(s); their numbers must be equal"
        )
    return role, text, sources


def _join_parts(parts: Sequence[Any], where: str, mark: str) -> tuple[str, list[Any]]:
    text, sources = "", []
    for number, part in enumerate(parts):
        here = f"part {number} of {where}"
        if not isinstance(part, Mapping):
            raise PromptError(f"{here} must be a dict with a 'type', not {type(part).__name__}")
        if text and not text.endswith("\n"):
            text += "\n"
        kind = part.get("type")
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise PromptError(f"{here} must hold a str in 'text'")
            text += part["text"]
        elif kind in ("image_url", *_PICTURE_KEYS):
            text += f"{mark}\n"
            sources.append(_source(part, here))
        else:
            raise PromptError(f"{here} has the type {kind!r}; accepted: text, image_url, image, picture")
    return text, sources


def _source(part: Mapping[str, Any], here: str) -> Any:
    """What the picture of a part is read from."""
    if part["type"] == "image_url":
        value = part.get("image_url")
        if isinstance(value, Mapping):
            if value.get("detail") not in (None, "auto", "high"):
                raise PromptError(
                    f"{here} asks for the detail {value['detail']!r}; accepted: 'auto' and 'high', since a "
                    "picture is always read at the model's full resolution"
                )
            value = value.get("url")
        if not isinstance(value, str) or not value:
            raise PromptError(f"{here} must hold a data: URL or a path in 'image_url' (or in its 'url')")
        return value
    given = [part[key] for key in _PICTURE_KEYS if part.get(key) is not None]
    if len(given) != 1:
        raise PromptError(f"{here} must hold one picture in 'image' (a path, a PIL picture or bytes)")
    return given[0]
