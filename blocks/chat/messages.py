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
role has an official spelling of `message_parts.ROLES`. Special tokens count, as in the reference.

Messages may come in any order. Those of the system become one, which is first; neighbours of one role are
joined with a blank line; empty messages are dropped. If the last message is the assistant's, the answer goes
on from it; an empty one asks for an answer, as in the official demos.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Unpack

from ..errors import PromptError
from ..image_fit import Fit, FittedImage
from ..image_io import ReadOptions, open_image
from ..message_parts import Part, join_parts, parse_message, pictures_first


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


def is_unfinished(turns: Sequence[Turn]) -> bool:
    """Whether the answer goes on from the last turn, right after its last word."""
    return turns[-1].role == "assistant" and not turns[-1].text[-1].isspace()


def normalize_messages(
    messages: Any, image_token: str, fit: Callable[[int], Fit], **reading: Unpack[ReadOptions]
) -> list[Turn]:
    """The turns of a conversation: perhaps one of the system, then the user and the assistant alternate.

    `image_token` stands for an image in a text (`<image>`, `<image_placeholder>`). `fit`, called with the
    number of images, gives what fits each to the model; a `FittedImage` is taken as it is. One image is open
    at a time; `reading` are options of `open_image`: use `local_files=False` for messages from a network.
    Raises `PromptError` for a malformed conversation and `PictureError` for an image that can't be read.
    """
    # Every message is read and checked before the first image is decoded.
    mark = f"{image_token}\n"
    parsed = [(role, parts) for role, parts in parse_messages(messages, image_token) if parts]
    parsed.sort(key=lambda message: message[0] != "system")
    turns = [
        (role, pictures_first([part for _, parts in group for part in parts], mark))
        for role, group in groupby(parsed, lambda message: message[0])
    ]
    fit_image = fit(sum(len(part.sources) for _, parts in turns for part in parts))

    def read(source: Any) -> FittedImage:
        if isinstance(source, FittedImage):
            return source
        return fit_image(open_image(source, **reading))

    return [
        Turn(role, join_parts(parts, mark), tuple(read(source) for part in parts for source in part.sources))
        for role, parts in turns
    ]


def parse_messages(messages: Any, image_token: str) -> list[tuple[str, list[Part]]]:
    """Role and content of each message, empty ones too, in the order of a conversation that is not empty and
    has something to answer. Raises `PromptError`."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise PromptError(f"messages must be a list of messages, not {type(messages).__name__}")
    if not messages:
        raise PromptError("messages is an empty list; accepted: at least one message of the user")
    parsed = [parse_message(message, number, image_token) for number, message in enumerate(messages)]
    _check_end(parsed)
    return parsed


def _check_end(parsed: Sequence[tuple[str, Sequence[Part]]]) -> None:
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
