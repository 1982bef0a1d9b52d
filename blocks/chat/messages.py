"""Reads conversations, in OpenAI's or the official form of messages, into a list of turns.

OpenAI's form: `content` is a text or a list of parts

    {"type": "text", "text": "..."}
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,..." or a path}}  (or the url itself)
    {"type": "image", "image": path, PIL image or bytes}             ("picture" is accepted for "image")

An image part becomes the family's image token and a newline. A text part that is followed by another part
ends with a newline, which is added if there is none. So an image and "Q" give "<image>\\nQ", as in the
official demos, and "Q" and an image give "Q\\n<image>\\n".

The official form: `content` is a text that contains the image tokens, and `images` holds the images.

Roles are `system`, `user` and `assistant`, or the official spellings in `ROLES`. After an optional system
message, user and assistant alternate. The last message is the user's; an empty assistant message may follow
it, as in the official demos.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PromptError
from ..image_fit import Fit, FittedImage
from ..image_io import as_image_list, open_image

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
_IMAGE_KEYS = ("image", "picture")


@dataclass(frozen=True)
class Turn:
    """One message: role ("system", "user", "assistant"), text with image tokens, one image per token."""

    role: str
    text: str
    images: tuple[FittedImage, ...] = ()


def normalize_messages(
    messages: Any, image_token: str, fit: Callable[[int], Fit], *, local_files: bool = True
) -> list[Turn]:
    """The turns of a conversation, without the empty assistant message that may end it.

    `image_token` stands for an image in a text (`<image>`, `<image_placeholder>`). `fit`, called with the
    number of images, gives what fits each to the model; a `FittedImage` is taken as it is. One image is open
    at a time. `local_files=False` allows images only as `data:` URLs, bytes or PIL images: use it for
    messages from a network. Raises `PromptError` for a malformed conversation and `PictureError` for an image
    that can't be read.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise PromptError(f"messages must be a list of messages, not {type(messages).__name__}")
    if not messages:
        raise PromptError("messages is an empty list; accepted: at least one message of the user")
    # Every message is read and checked before the first image is decoded.
    parsed = [_parse_message(message, f"message {i}", image_token) for i, message in enumerate(messages)]
    if parsed[-1][0] == "assistant" and not parsed[-1][1].strip():
        parsed.pop()
    _check_order([role for role, _, _ in parsed])
    for index, (role, text, _) in enumerate(parsed):
        if not text.strip():
            raise PromptError(f"message {index} ({role}) is empty; only a last one of the assistant may be")
    fit_image = fit(sum(len(sources) for _, _, sources in parsed))

    def read(source: Any) -> FittedImage:
        if isinstance(source, FittedImage):
            return source
        return fit_image(open_image(source, local_files=local_files))

    return [Turn(role, text, tuple(map(read, sources))) for role, text, sources in parsed]


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


def _parse_message(message: Any, where: str, image_token: str) -> tuple[str, str, list[Any]]:
    """Role, text with image tokens, and one image source per token."""
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} must be a dict with 'role' and 'content', not {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise PromptError(f"{where} has the role {role!r}; accepted: {', '.join(ROLES)}")
    role = ROLES[role]
    content, images = message.get("content"), as_image_list(message.get("images"))
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, str):
        text, sources = content, images
    elif isinstance(content, list | tuple):
        if images:
            raise PromptError(f"{where} has picture parts or 'images', not both: use 'images' with a text")
        text, sources = _join_parts(content, where, image_token)
    elif content is None:
        raise PromptError(f"{where} has no content; accepted: a text or a list of parts")
    else:
        raise PromptError(f"{where} has content of type {type(content).__name__}; accepted: a text or parts")
    count = text.count(image_token)
    if role != "user" and (count or sources):
        raise PromptError(
            f"{where} ({role}) has a picture or the mark {image_token}; only the user's messages may"
        )
    if count != len(sources):
        raise PromptError(
            f"{where} has {count} mark(s) {image_token} and {len(sources)} picture(s); "
            "their numbers must be equal"
        )
    return role, text, sources


def _join_parts(parts: Sequence[Any], message: str, image_token: str) -> tuple[str, list[Any]]:
    """Text with image tokens, and image sources, of a list of parts; `message` is its name in errors."""
    text, sources = "", []
    for number, part in enumerate(parts):
        where = f"part {number} of {message}"
        if not isinstance(part, Mapping):
            raise PromptError(f"{where} must be a dict with a 'type', not {type(part).__name__}")
        if text and not text.endswith("\n"):
            text += "\n"
        kind = part.get("type")
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise PromptError(f"{where} must hold a str in 'text'")
            text += part["text"]
        elif kind in ("image_url", *_IMAGE_KEYS):
            text += f"{image_token}\n"
            sources.append(_image_source(part, where))
        else:
            raise PromptError(f"{where} has the type {kind!r}; accepted: text, image_url, image, picture")
    return text, sources


def _image_source(part: Mapping[str, Any], where: str) -> Any:
    """The source of an image part, for `open_image`."""
    if part["type"] == "image_url":
        value = part.get("image_url")
        if isinstance(value, Mapping):
            if value.get("detail") not in (None, "auto", "high"):
                raise PromptError(
                    f"{where} asks for the detail {value['detail']!r}; accepted: 'auto' and 'high', since a "
                    "picture is always read at the model's full resolution"
                )
            value = value.get("url")
        if not isinstance(value, str) or not value:
            raise PromptError(f"{where} must hold a data: URL or a path in 'image_url' (or in its 'url')")
        return value
    given = [part[key] for key in _IMAGE_KEYS if part.get(key) is not None]
    if len(given) != 1:
        raise PromptError(f"{where} must hold one picture in 'image' (a path, a PIL picture or bytes)")
    return given[0]
