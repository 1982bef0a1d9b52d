"""What a file is that a command was given in the place of another kind, and which command takes it."""

import os
import re
from contextlib import suppress

from ...blocks.errors import PromptError
from ...blocks.files import describe_content, encoding_of, open_regular

HEAD_BYTES = 4096
"""As much of a file as `other_kind` looks at."""
PICTURE, CODES, PROMPTS = "a picture", "codes", "prompts"
_KINDS = (
    (
        rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*|P[1-6]\s+\d+\s+\d+\s|"
        rb"\0\0\0\x0cjP|\xff\x4f\xff\x51|\0\0..ftypavi[fs]",
        PICTURE,
        "bifrons encode writes its codes, bifrons show prints its settings, bifrons ask answers about it",
    ),
    (
        rb"\x93NUMPY|\s*\[[\[\s]*\d+(?:\s*,\s*\d+){3}|\s*\{.*\"codes\"\s*:\s*\[",
        CODES,
        "bifrons decode makes their picture",
    ),
    (rb"%PDF-", "a PDF", "save its pages as pictures"),
    (rb"\0\0..ftyphei[cx]|\0\0..ftypmif1", "a HEIC picture", "save it as JPEG or PNG"),
    (rb"\0\0..ftyp|\x1aE\xdf\xa3|RIFF....AVI ", "a video", "save its frames as pictures"),
    (rb".{7}\0\{\s*\"", "a safetensors file of weights", "bifrons info takes its folder"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!\x1a", "an archive", "unpack it"),
)
"""Beginnings of files, what they are and what to do with them."""


def other_kind(name: str, head: bytes, wanted: str) -> str | None:
    """What is wrong with a file that begins with these bytes if it is of a known kind, but not the wanted."""
    if wanted != PROMPTS and (foreign := describe_content(head)):
        return f"{name} is {foreign}"
    if encoding := encoding_of(head[:4]):  # a text, which PowerShell writes in UTF-16
        head = head[: len(head) // 4 * 4].decode(encoding, errors="ignore").encode()
    for beginning, kind, advice in _KINDS:
        if re.match(beginning, head[:HEAD_BYTES], re.DOTALL):
            return None if kind == wanted else f"{name} is {kind}, not {wanted}; {advice}"
    return None


def file_head(path: str | os.PathLike[str]) -> bytes:
    """How a regular file begins; nothing if it can't be read."""
    with suppress(OSError), open_regular(os.path.expanduser(path)) as stream:
        return stream.read(HEAD_BYTES)
    return b""


def is_picture(path: str) -> bool:
    """Whether a file with this name begins as pictures do."""
    return re.match(_KINDS[0][0], file_head(path), re.DOTALL) is not None


def check_no_file(what: str, text: str, advice: str) -> None:
    """Raise `PromptError` for a text that is the name of a file with a suffix, such as `star.png`."""
    if os.path.splitext(text)[1] and os.path.isfile(text):
        raise PromptError(f"{what} is the name of a file, {text}; accepted: a text; {advice}")
