"""Every form in which programs hand over an image, as a byte stream or a PIL image that is yet to be read."""

import base64
import binascii
import io
import os
import urllib.parse
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from .errors import PictureError, PromptError, shown
from .files import open_regular

MAX_FILE = 1_000_000_000
"""Largest file, in bytes."""

_LONGEST_PATH = 4096
_SHORTEST_BASE64 = 32
_BASE64 = str.maketrans({"-": "+", "_": "/", **dict.fromkeys(" \t\r\n")})
_MAGICS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_MAGICS += (b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")
"""How files of images begin, but for AVIF and PPM."""
_PART_KEYS = ("image", "picture", "url", "path", "base64")


def as_image_list(images: Any) -> list[Any]:
    """A list of images from an argument that is None, one image, or a list or tuple of images."""
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def part_source(part: Mapping[str, Any], where: str) -> Any:
    """The source of an image part of a message, for `resolve_source`. Raises `PromptError`."""
    if part["type"] == "image_url":
        value = part.get("image_url")
        if isinstance(value, Mapping):
            if value.get("detail") not in (None, "auto", "low", "high"):
                raise PromptError(
                    f"{where} asks for the detail {shown(value['detail'])}; accepted: 'auto', 'low', 'high', "
                    "all the same, since a picture is always read at the model's full resolution"
                )
            value = value.get("url")
        if not isinstance(value, str) or not value:
            raise PromptError(f"{where} must hold a data: URL or a path in 'image_url' (or in its 'url')")
        return value
    given = [part[key] for key in _PART_KEYS if part.get(key) is not None]
    if len(given) != 1:
        raise PromptError(f"{where} must hold one picture, in one of {', '.join(_PART_KEYS)}")
    return given[0]


def resolve_source(source: Any, local_files: bool, max_pixels: int) -> tuple[str, Image.Image | BinaryIO]:
    """A name for error messages, and the source in a form for PIL: an image or a byte stream.

    The forms are those of `image_io.open_image`. Raises `PictureError`.
    """
    if isinstance(source, Image.Image):
        return "the PIL picture", source
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise PictureError("a picture was given as 0 bytes")
        return f"the picture of {len(source):,} bytes", io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        return _resolve_text(os.fspath(source), isinstance(source, str), local_files)
    if hasattr(source, "read"):
        return "the picture in the open file", _read_stream(source)
    if hasattr(source, "__array__"):
        return "the picture in the array", _array_image(source, max_pixels)
    raise PictureError(
        f"a picture can't be a {type(source).__name__}; accepted: path, bytes, an open binary file, data: "
        "URL, base64, PIL picture, array or tensor"
    )


def _resolve_text(text: str | bytes, may_be_content: bool, local_files: bool) -> tuple[str, BinaryIO]:
    """A path, or if it `may_be_content` a data: URL or base64."""
    if isinstance(text, str) and may_be_content:
        scheme = text[:8].lower()
        if scheme.startswith("data:"):
            return "the picture in the data: URL", io.BytesIO(_decode_data_url(text))
        if scheme.startswith(("http:", "https:", "ftp:")):
            raise PictureError(
                f"{shown_source(text)} is an address; nothing is downloaded: save the picture and give its "
                "path, or put it into a data: URL"
            )
        if (content := _decode_base64(text)) and not (local_files and _is_file(text)):
            return "the picture in base64", io.BytesIO(content)
    if not local_files:
        raise PictureError("a path is not accepted here; give the picture as a data: URL")
    return shown_source(text), _open_path(text)


def _is_file(text: str) -> bool:
    return len(text) <= _LONGEST_PATH and os.path.isfile(os.path.expanduser(text))


def _open_path(source: str | bytes) -> BinaryIO:
    """A regular file that is not empty, opened; `~` is the user's folder."""
    path, problem = os.path.expanduser(os.fsdecode(source)), None
    try:
        if len(path) > _LONGEST_PATH:
            problem = "can't be opened: it is too long for a path, and no data: URL or picture in base64"
        elif os.path.isdir(path):
            problem = "is a folder, not a picture"
        else:
            stream = io.BufferedReader(open_regular(path))  # type: ignore[arg-type]
            size = os.fstat(stream.fileno()).st_size
            if 0 < size <= MAX_FILE:
                return stream
            stream.close()
            problem = f"has {size:,} bytes; at most {MAX_FILE:,} are accepted" if size else "is an empty file"
    except FileNotFoundError:
        problem = "does not exist"
    except (OSError, ValueError) as error:  # too long a name, a NUL in it, no permission, a pipe
        problem = f"can't be opened: {getattr(error, 'strerror', error)}"
    raise PictureError(f"{shown_source(source)} {problem}")


def shown_source(text: str | bytes) -> str:
    """The source of an image as errors show it, cut to a bearable length."""
    return shown(text, 100)


def _decode_data_url(url: str) -> bytes:
    """The bytes of a data: URL (RFC 2397)."""
    header, comma, body = url.partition(",")
    if not comma:
        raise PictureError(f"{shown_source(url)} is no data: URL; accepted: data:image/png;base64,...")
    content = urllib.parse.unquote_to_bytes(body)
    if header.lower().endswith(";base64"):
        try:
            content = base64.b64decode(b"".join(content.split()), validate=True)
        except binascii.Error as error:
            raise PictureError(f"the data: URL is not valid base64: {error}") from error
    if not content:
        raise PictureError("the data: URL holds 0 bytes")
    return content


def _decode_base64(text: str) -> bytes | None:
    """The file in a text of base64, if that is what it is: `/9j/4AAQ...` might be a path."""
    head = text[:64].translate(_BASE64)[:_SHORTEST_BASE64]
    try:
        start = base64.b64decode(head, validate=True)
        if len(head) < _SHORTEST_BASE64 or not (start.startswith(_MAGICS) or start[4:8] == b"ftyp"):
            return None
        body = text.translate(_BASE64).rstrip("=")
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except ValueError:
        return None


def _read_stream(stream: Any) -> BinaryIO:
    """The content of an open file, from its beginning where it can be rewound."""
    try:
        if getattr(stream, "seekable", bool)():
            stream.seek(0)
        content = stream.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:  # closed, or opened for writing
        raise PictureError(f"the open file can't be read: {error}") from error
    if not isinstance(content, bytes):
        raise PictureError('the open file gives text; accepted: one opened with open(path, "rb")')
    if not 0 < len(content) <= MAX_FILE:
        raise PictureError(f"the open file has {len(content):,} bytes; accepted: 1 to {MAX_FILE:,}")
    return io.BytesIO(content)


def _array_image(source: Any, max_pixels: int) -> Image.Image:
    """The image in an array or a tensor of one of the shapes of `open_image`."""
    if hasattr(source, "detach"):  # a tensor: numpy knows neither gradients, other devices nor bfloat16
        source = source.detach().cpu()
        source = source.float() if source.is_floating_point() else source
    values = np.asarray(source)
    if values.ndim == 3 and values.shape[2] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = values.transpose(1, 2, 0)  # channels first
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    shape = list(values.shape)
    if values.ndim not in (2, 3) or (values.ndim == 3 and shape[2] not in (3, 4)) or 0 in shape:
        raise PictureError(
            f"the array has the shape {shape}; accepted: one picture of [height, width], with a last or "
            "first axis of 1, 3 or 4 channels"
        )
    if (count := shape[0] * shape[1]) > max_pixels:
        raise PictureError(f"the array has {count:,} pixels; at most {max_pixels:,} are accepted")
    return Image.fromarray(_as_bytes(values[:, :, :3] if values.ndim == 3 else values))


def _as_bytes(values: np.ndarray) -> np.ndarray:
    """Values as uint8: floats from 0 to 1, whole numbers from 0 to 255, 16 bits by value / 257."""
    kind = values.dtype.kind
    if kind not in "uif":
        raise PictureError(f"the array holds {values.dtype}; accepted: whole numbers, or floats from 0 to 1")
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    least, most = values.min(), values.max()
    high = 1 if kind == "f" else 65535 if values.dtype == np.uint16 else 255
    if not (least >= 0 and most <= high):  # nor NaN
        raise PictureError(f"the array holds {values.dtype} from {least} to {most}; accepted: 0 to {high}")
    if kind == "f":
        return np.rint(values * np.float32(255)).astype(np.uint8)
    return ((values.astype(np.int32) + 128) // 257 if high == 65535 else values).astype(np.uint8)
