"""Reading pictures that users hand in: from files, bytes, data URLs or PIL, always to plain RGB."""

import base64
import binascii
import io
import os
import threading
import urllib.parse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import PictureError

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded by default: 192 MB as RGB, and more than cameras save as a rule."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""File formats that are read. PIL knows more; some of those start other programs (EPS)."""

# `warnings.catch_warnings` swaps a table of the whole process, so that two threads must not overlap in it.
_WARNINGS_LOCK = threading.RLock()


def resize_bicubic(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at `size` (width, height), resampled along rows first and then along columns.

    The order is part of what the models were trained on, since 8 bits are kept in between: Pillow always did
    it so, but from version 13 on takes the cheaper order where both are asked for at once.
    """
    rows = picture.resize((size[0], picture.height), Image.Resampling.BICUBIC)
    return rows.resize(size, Image.Resampling.BICUBIC)


def as_list(images: Any) -> list[Any]:
    """The pictures of an argument that takes none (None), one picture, or a list or tuple of them."""
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def open_image(
    source: Any, *, max_pixels: int = MAX_PIXELS, apply_exif: bool = False, local_files: bool = True
) -> Image.Image:
    """A new RGB picture from a path, bytes, a `data:` URL or a PIL picture (which is left as it was).

    =========================  =====================================================================
    RGB                        as it is
    animated (GIF, APNG, ...)  the first frame; of a PIL picture the frame that it is at
    alpha (RGBA, LA)           the alpha channel is dropped, as the official processors do
    palette, with alpha too    the palette's colours; a transparent entry shows the colour it hides
    1 bit, grey                grey
    CMYK, YCbCr, HSV           PIL's conversion (no colour profiles)
    16-bit grey                each value / 257, rounded (the official code clips or wraps it)
    32-bit integer grey        as 8 bits up to 255, as 16 bits up to 65535, else refused
    floating point             refused: nothing says which value is white
    EXIF orientation           ignored, as in the official processors, unless `apply_exif`
    more than `max_pixels`     refused from the header, before anything is decoded
    =========================  =====================================================================

    `max_pixels` can't exceed PIL's own limit (`2 * Image.MAX_IMAGE_PIXELS`). With `local_files` false
    no path is read: for requests from a network. Nothing is ever downloaded.
    Raises PictureError for all that is no picture, damaged or refused.
    """
    name, opened = _resolve(source, local_files)
    with _WARNINGS_LOCK, warnings.catch_warnings():
        # Size limits and damage are judged here; PIL's warnings about them would only repeat it on stderr.
        warnings.simplefilter("ignore")
        if isinstance(opened, Image.Image):
            return _to_rgb(opened, name, max_pixels, apply_exif)
        try:
            picture = Image.open(opened, formats=_known_formats())
        except Image.DecompressionBombError as error:
            raise PictureError(f"{name} has too many pixels; at most {max_pixels:,} are accepted") from error
        except Image.UnidentifiedImageError as error:
            raise PictureError(f"{name} is not a picture; accepted: {', '.join(FORMATS)}") from error
        except Exception as error:  # PIL's readers raise nearly anything on damaged headers
            raise PictureError(f"{name} can't be read: {error}") from error
        with picture:
            return _to_rgb(picture, name, max_pixels, apply_exif)


def _known_formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _resolve(source: Any, local_files: bool) -> tuple[str, Any]:
    """A name for messages, and what PIL can open: a PIL picture, a path or a byte stream."""
    if isinstance(source, Image.Image):
        return "the PIL picture", source
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise PictureError("a picture was given as 0 bytes")
        return f"the picture of {len(source):,} bytes", io.BytesIO(source)
    if not isinstance(source, str | os.PathLike):
        raise PictureError(
            f"a picture can't be a {type(source).__name__}; accepted: path, bytes, data: URL, PIL picture"
        )
    text = os.fspath(source)
    if isinstance(source, str):
        scheme = source[:8].lower()
        if scheme.startswith("data:"):
            return "the picture in the data: URL", io.BytesIO(_data_url(source))
        if scheme.startswith(("http:", "https:", "ftp:")):
            raise PictureError(
                f"{_short(source)} is an address; nothing is downloaded: save the picture and give its path, "
                "or put it into a data: URL"
            )
    if not local_files:
        raise PictureError("a path is not accepted here; give the picture as a data: URL")
    return _short(text), _regular_file(text)


def _regular_file(text: Any) -> Path:
    try:
        path = Path(os.fsdecode(text))
        if path.is_dir():
            raise PictureError(f"{_short(text)} is a folder, not a picture")
        if not path.exists():
            raise PictureError(f"{_short(text)} does not exist")
        if not path.is_file():
            raise PictureError(f"{_short(text)} is not a regular file")
        if path.stat().st_size == 0:
            raise PictureError(f"{_short(text)} is an empty file")
    except PictureError:
        raise
    except (OSError, ValueError) as error:  # too long a name, a NUL in it, no permission
        raise PictureError(f"{_short(text)} can't be opened: {error}") from error
    return path


def _short(text: Any) -> str:
    shown = repr(text)
    return shown if len(shown) <= 120 else f"{shown[:100]}...' ({len(text):,} characters)"


def _data_url(url: str) -> bytes:
    """The bytes of a data: URL (RFC 2397)."""
    header, comma, body = url.partition(",")
    if not comma:
        raise PictureError(f"{_short(url)} is no data: URL; accepted: data:image/png;base64,...")
    body_bytes = urllib.parse.unquote_to_bytes(body)
    if header.lower().endswith(";base64"):
        try:
            body_bytes = base64.b64decode(b"".join(body_bytes.split()), validate=True)
        except binascii.Error as error:
            raise PictureError(f"the data: URL is not valid base64: {error}") from error
    if not body_bytes:
        raise PictureError("the data: URL holds 0 bytes")
    return body_bytes


def _to_rgb(picture: Image.Image, name: str, max_pixels: int, apply_exif: bool) -> Image.Image:
    width, height = picture.size
    if width < 1 or height < 1:
        raise PictureError(f"{name} has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise PictureError(
            f"{name} is {width:,} x {height:,} pixels, {width * height:,} in all; "
            f"at most {max_pixels:,} are accepted"
        )
    try:
        picture.load()
        if apply_exif:
            picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith(("I", "F")):
            return _grey_to_rgb(picture, name)
        return picture.convert("RGB")
    except PictureError:
        raise
    except Exception as error:  # PIL's decoders raise nearly anything on damaged data
        raise PictureError(f"{name} is damaged or of a kind that can't be converted: {error}") from error


def _grey_to_rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode == "F":
        raise PictureError(f"{name} holds floating-point values; accepted: 8 or 16 bits a channel")
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise PictureError(
            f"{name} holds values from {values.min()} to {values.max()}; accepted: 8 or 16 bits a channel"
        )
    if picture.mode.startswith("I;16") or values.max() > 255:
        values = (values + 128) // 257
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
