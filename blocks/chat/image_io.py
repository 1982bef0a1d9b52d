"""Reads images from users (files, bytes, data URLs, PIL images) as RGB; writes PNG with text chunks."""

import base64
import binascii
import io
import os
import threading
import urllib.parse
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..errors import PictureError

MAX_PIXELS = 64_000_000
"""Largest image that is decoded by default: 192 MB as RGB, and more than most cameras produce."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted file formats. PIL reads more, but some of those start other programs (EPS)."""

# `warnings.catch_warnings` changes process-wide state, so only one thread may be inside it.
_WARNINGS_LOCK = threading.RLock()


def resize_bicubic(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image resized to `size` (width, height), horizontally first and then vertically.

    The models were trained with this order, which matters because the intermediate result is rounded to
    8 bits. From version 13 on, Pillow picks the cheaper order when both axes are resized in one call.
    """
    horizontal = image.resize((size[0], image.height), Image.Resampling.BICUBIC)
    return horizontal.resize(size, Image.Resampling.BICUBIC)


def normalize_pixels(
    pixels_HW3: np.ndarray, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """Float32 pixels minus `mean`, divided by `std` (both per channel), as `[3, height, width]`."""
    normalized = (pixels_HW3 - np.array(mean, np.float32)) / np.array(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalized.transpose(2, 0, 1)))


def text_chunks(image: Image.Image) -> dict[str, str]:
    """The strings in an image's `info`, such as the settings of the pipeline that generated it."""
    pairs = image.info.items()
    return {name: value for name, value in pairs if isinstance(name, str) and isinstance(value, str)}


def write_png(image: Image.Image, stream: BinaryIO) -> None:
    """Write an image as PNG with its `text_chunks`: as `tEXt`, or `iTXt` for text beyond Latin-1."""
    chunks = PngInfo()
    for name, value in text_chunks(image).items():
        chunks.add_text(name, value)
    # For filtered rows, run lengths give files as small as a search for repetitions, 2 to 6 times as fast.
    image.save(stream, format="PNG", pnginfo=chunks, compress_type=zlib.Z_RLE)


def as_image_list(images: Any) -> list[Any]:
    """A list of images from an argument that is None, one image, or a list or tuple of images."""
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def open_image(
    source: Any, *, max_pixels: int = MAX_PIXELS, apply_exif: bool = False, local_files: bool = True
) -> Image.Image:
    """A new RGB image from a path, bytes, a `data:` URL or a PIL image (which is left unchanged).

    =========================  =====================================================================
    RGB                        unchanged
    animated (GIF, APNG, ...)  the first frame; of a PIL image the current frame
    alpha (RGBA, LA)           the alpha channel is dropped, as in the official processors
    palette, with alpha too    the palette's colours; a transparent entry shows the colour it hides
    1 bit, grey                grey
    CMYK, YCbCr, HSV           PIL's conversion (no colour profiles)
    16-bit grey                each value / 257, rounded (the official code clips or wraps it)
    32-bit integer grey        as 8 bits up to 255, as 16 bits up to 65535, else refused
    floating point             refused: the value of white is unknown
    EXIF orientation           ignored, as in the official processors, unless `apply_exif`
    more than `max_pixels`     refused from the header, before anything is decoded
    =========================  =====================================================================

    `max_pixels` can't exceed PIL's own limit (`2 * Image.MAX_IMAGE_PIXELS`). With `local_files` false, paths
    are refused: use it for requests from a network. Nothing is ever downloaded.
    Raises PictureError for anything that is not an image, is damaged or is refused.
    """
    name, opened = _resolve_source(source, local_files)
    with _WARNINGS_LOCK, warnings.catch_warnings():
        # Size and damage are checked here; PIL's warnings about them would be noise on stderr.
        warnings.simplefilter("ignore")
        if isinstance(opened, Image.Image):
            return _to_rgb(opened, name, max_pixels, apply_exif)
        try:
            image = Image.open(opened, formats=_supported_formats())
        except Image.DecompressionBombError as error:
            raise PictureError(f"{name} has too many pixels; at most {max_pixels:,} are accepted") from error
        except Image.UnidentifiedImageError as error:
            raise PictureError(f"{name} is not a picture; accepted: {', '.join(FORMATS)}") from error
        except Exception as error:  # PIL's readers raise nearly anything on damaged headers
            raise PictureError(f"{name} can't be read: {error}") from error
        with image:
            return _to_rgb(image, name, max_pixels, apply_exif)


def _supported_formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _resolve_source(source: Any, local_files: bool) -> tuple[str, Any]:
    """A name for error messages, and the source in a form for PIL: an image, a path or a byte stream."""
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
    if isinstance(source, str):
        scheme = source[:8].lower()
        if scheme.startswith("data:"):
            return "the picture in the data: URL", io.BytesIO(_decode_data_url(source))
        if scheme.startswith(("http:", "https:", "ftp:")):
            raise PictureError(
                f"{_shortened(source)} is an address; nothing is downloaded: save the picture and give its "
                "path, or put it into a data: URL"
            )
    if not local_files:
        raise PictureError("a path is not accepted here; give the picture as a data: URL")
    return _shortened(os.fspath(source)), _check_file(os.fspath(source))


def _check_file(source: str | bytes) -> Path:
    """The path of a regular file that is not empty."""
    path, problem = Path(os.fsdecode(source)), None
    try:
        if path.is_dir():
            problem = "is a folder, not a picture"
        elif not path.exists():
            problem = "does not exist"
        elif not path.is_file():
            problem = "is not a regular file"
        elif path.stat().st_size == 0:
            problem = "is an empty file"
    except (OSError, ValueError) as error:  # too long a name, a NUL in it, no permission
        problem = f"can't be opened: {error}"
    if problem:
        raise PictureError(f"{_shortened(source)} {problem}")
    return path


def _shortened(text: Any) -> str:
    quoted = repr(text)
    return quoted if len(quoted) <= 120 else f"{quoted[:100]}...' ({len(text):,} characters)"


def _decode_data_url(url: str) -> bytes:
    """The bytes of a data: URL (RFC 2397)."""
    header, comma, body = url.partition(",")
    if not comma:
        raise PictureError(f"{_shortened(url)} is no data: URL; accepted: data:image/png;base64,...")
    content = urllib.parse.unquote_to_bytes(body)
    if header.lower().endswith(";base64"):
        try:
            content = base64.b64decode(b"".join(content.split()), validate=True)
        except binascii.Error as error:
            raise PictureError(f"the data: URL is not valid base64: {error}") from error
    if not content:
        raise PictureError("the data: URL holds 0 bytes")
    return content


def _to_rgb(image: Image.Image, name: str, max_pixels: int, apply_exif: bool) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise PictureError(f"{name} has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise PictureError(
            f"{name} is {width:,} x {height:,} pixels, {width * height:,} in all; "
            f"at most {max_pixels:,} are accepted"
        )
    try:
        image.load()
        if apply_exif:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            return _grey_to_rgb(image, name)
        return image.convert("RGB")
    except PictureError:
        raise
    except Exception as error:  # PIL's decoders raise nearly anything on damaged data
        raise PictureError(f"{name} is damaged or of a kind that can't be converted: {error}") from error


def _grey_to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise PictureError(f"{name} holds floating-point values; accepted: 8 or 16 bits a channel")
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise PictureError(
            f"{name} holds values from {values.min()} to {values.max()}; accepted: 8 or 16 bits a channel"
        )
    if image.mode.startswith("I;16") or values.max() > 255:
        values = (values + 128) // 257
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
