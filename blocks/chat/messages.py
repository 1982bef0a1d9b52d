"""Reads conversations, in OpenAI's or the official form of messages, into a list of turns.

OpenAI's form: `content` is a text or a list of parts

    {"type": "text", "text": "..."}
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,..." or a path}}  (or the url itself)
    {"type": "image", "image" or "picture", "url", "path" or "base64": anything that `open_image` reads}

Texts are people's: the names of special tokens in them are text (`PlainText`). An image part becomes the
family's image token and a newline. A text part that is followed by another part ends with a newline, which is
added if there is none. Images that follow the last text come before it: the models were trained with images
first. So an image and "Q", or "Q" and an image, give "<image>\\nQ", as in the official demos.

The official form: `content` is a text that contains the image tokens, and `images` holds the images; or the
role is spelled in an official way (`ROLES`). Special tokens in the text count, as in the reference.

Messages may come in any order. Those of the system become one, which is first; neighbours of one role are
joined with a blank line; empty messages are dropped. If the last message is the assistant's, the answer goes
on from it; an empty one asks for an answer, as in the official demos.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Unpack

from ..errors import PromptError, shown
from ..image_fit import Fit, FittedImage
from ..image_io import ReadOptions, open_image
from ..image_source import as_image_list, part_source
from ..special_tokens import PlainText

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
class Turn:
    """Joined messages: role ("system", "user", "assistant"), the pieces of their text (`PlainText` or with
    special tokens), one image per image token."""

    role: str
    pieces: Sequence[str]
    images: tuple[FittedImage, ...] = ()

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)


@dataclass(frozen=True)
class _Part:
    """A text, or an image token and a newline, of message `number`, and one image source per token."""

    number: int
    text: str
    sources: Sequence[Any] = ()


def is_unfinished(turns: Sequence[Turn]) -> bool:
    """Whether the answer goes on from the last turn, right after its last word."""
    return turns[-1].role == "assistant" and not turns[-1].text[-1].isspace()


def strip_pieces(pieces: Sequence[str]) -> list[str]:
    """The pieces of a text without white space around the whole."""
    filled = [index for index, piece in enumerate(pieces) if piece.strip()]
    stripped = list(pieces[filled[0] : filled[-1] + 1]) if filled else []
    if stripped:
        stripped[0] = type(stripped[0])(stripped[0].lstrip())
        stripped[-1] = type(stripped[-1])(stripped[-1].rstrip())
    return stripped


def normalize_messages(
    messages: Any, image_token: str, fit: Callable[[int], Fit], **reading: Unpack[ReadOptions]
) -> list[Turn]:
    """The turns of a conversation: perhaps one of the system, then the user and the assistant alternate.

    `image_token` stands for an image in a text (`<image>`, `<image_placeholder>`). `fit`, called with the
    number of images, gives what fits each to the model; a `FittedImage` is taken as it is. One image is open
    at a time; `reading` are options of `open_image`: use `local_files=False` for messages from a network.
    Raises `PromptError` for a malformed conversation and `PictureError` for an image that can't be read.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise PromptError(f"messages must be a list of messages, not {type(messages).__name__}")
    if not messages:
        raise PromptError("messages is an empty list; accepted: at least one message of the user")
    # Every message is read and checked before the first image is decoded.
    mark = f"{image_token}\n"
    parsed = [_parse_message(message, number, image_token) for number, message in enumerate(messages)]
    _check_end(parsed)
    parsed = [(role, parts) for role, parts in parsed if parts]
    parsed.sort(key=lambda message: message[0] != "system")
    turns = [
        (role, _pictures_first([part for _, parts in group for part in parts], mark))
        for role, group in groupby(parsed, lambda message: message[0])
    ]
    fit_image = fit(sum(len(part.sources) for _, parts in turns for part in parts))

    def read(source: Any) -> FittedImage:
        if isinstance(source, FittedImage):
            return source
        return fit_image(open_image(source, **reading))

    return [
        Turn(role, _join(parts, mark), tuple(read(source) for part in parts for source in part.sources))
        for role, parts in turns
    ]


def _check_end(parsed: Sequence[tuple[str, Sequence[_Part]]]) -> None:
    """Raise `PromptError` unless the user said something, and nothing empty last."""
    said = [(n, role, parts) for n, (role, parts) in enumerate(parsed) if role == "user" or parts]
    said = [message for message in said if message[1] != "system"]
    if said and not said[-1][2]:
        raise PromptError(f"message {said[-1][0]} (user) is empty, and there is no other after it")
    if not any(role == "user" and parts for _, role, parts in said):
        raise PromptError(
            "the conversation has no message of the user; it must end with one, or with a message of the "
            "assistant to go on from (an empty one asks for an answer)"
        )


def _pictures_first(parts: list[_Part], mark: str) -> list[_Part]:
    """The parts with the last text behind all images."""
    texts = [index for index, part in enumerate(parts) if part.text != mark]
    if texts:
        parts.append(parts.pop(texts[-1]))
    return parts


def _join(parts: Sequence[_Part], mark: str) -> list[str]:
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


def _parse_message(message: Any, number: int, image_token: str) -> tuple[str, list[_Part]]:
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
        parts = [_Part(number, content if official else PlainText(content), images)]
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


def _parse_part(part: Any, number: int, index: int, image_token: str) -> _Part:
    where = f"part {index} of message {number}"
    if not isinstance(part, Mapping):
        raise PromptError(f"{where} must be a dict with a 'type', not {type(part).__name__}")
    kind = part.get("type")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise PromptError(f"{where} must hold a str in 'text'")
        return _Part(number, PlainText(part["text"]))
    if kind not in ("image_url", "image", "picture"):
        raise PromptError(f"{where} has the type {shown(kind)}; accepted: text, image_url, image, picture")
    return _Part(number, f"{image_token}\n", [part_source(part, where)])
