"""Reads images from users (files, bytes, data URLs, PIL images) as RGB; writes PNG with text chunks."""

import base64
import binascii
import io
import os
import threading
import urllib.parse
import warnings
import zlib
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, TiffTags
from PIL.PngImagePlugin import PngInfo

from .errors import PictureError
from .files import open_regular
from .image_limits import check_exif, check_header

MAX_PIXELS = 64_000_000
"""Largest image that is decoded by default: 256 MB as Pillow holds RGB, more than most cameras produce."""
MAX_SIDE = 65_535
"""Longest side by default, that of JPEG. Resizing makes an intermediate image of the model's width and the
input's height, which for an input one pixel wide is hundreds of times its size."""
MAX_FILE = 1_000_000_000
"""Largest file, in bytes."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted file formats. PIL reads more, but some of those start other programs (EPS)."""

_ORIENTATION = 0x0112
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each of EXIF's orientations."""

# `warnings.catch_warnings` changes process-wide state, so only one thread may be inside it. Headers are read
# there, whose size is limited; decoding is not.
_WARNINGS_LOCK = threading.Lock()


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
    source: Any,
    *,
    max_pixels: int = MAX_PIXELS,
    max_side: int = MAX_SIDE,
    apply_exif: bool = False,
    local_files: bool = True,
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
    a side over `max_side`     refused in the same way
    what costs more to decode  refused in the same way: see `image_limits`
    =========================  =====================================================================

    `max_pixels` can't exceed PIL's own limit (`2 * Image.MAX_IMAGE_PIXELS`). With `local_files` false, paths
    are refused: use it for requests from a network. Nothing is ever downloaded.
    Raises PictureError for anything that is not an image, is damaged, is refused or exceeds the free memory.
    """
    name, opened = _resolve_source(source, local_files)
    if isinstance(opened, Image.Image):
        return _to_rgb(opened, name, max_pixels, max_side, apply_exif)
    with opened, _open_file(opened, name, max_pixels, apply_exif) as image:
        return _to_rgb(image, name, max_pixels, max_side, apply_exif)


def _open_file(stream: BinaryIO, name: str, max_pixels: int, apply_exif: bool) -> Image.Image:
    """The image in a file, with its header and metadata read but nothing decoded."""
    try:
        check_header(stream, max_pixels)
        with _WARNINGS_LOCK, warnings.catch_warnings():
            # Size and damage are checked here; PIL's warnings about them would be noise on stderr.
            warnings.simplefilter("ignore")
            image = Image.open(stream, formats=_supported_formats())
            if apply_exif or image.format == "TIFF":
                _read_exif(image)
            return image
    except PictureError as error:
        raise PictureError(f"{name} is refused: {error}") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} has too many pixels; at most {max_pixels:,} are accepted") from error
    except Image.UnidentifiedImageError as error:
        raise PictureError(f"{name} is not a picture; accepted: {', '.join(FORMATS)}") from error
    except Exception as error:  # PIL's readers raise nearly anything on damaged headers
        raise _failure(name, "can't be read", error) from error


def _read_exif(image: Image.Image) -> None:
    """Read what decoding and turning would read later, with warnings."""
    data = image.info.get("exif", b"")
    if not data and (lines := image.info.get("Raw profile type exif")):  # a text chunk of PNG
        data = bytes.fromhex("".join(lines.split("\n")[3:]))
    check_exif(data)
    exif = image.getexif()
    if image.format == "TIFF" and not getattr(image, "is_animated", False):
        for tag in TiffTags.TAGS_V2_GROUPS:
            if tag in exif:
                exif.get_ifd(tag)


def _failure(name: str, problem: str, error: Exception) -> PictureError:
    """The error for an image that PIL can't read; some decoders report too little memory in words only."""
    if isinstance(error, MemoryError) or "memory" in str(error).lower():
        problem, error = "takes more memory to decode than there is", MemoryError("accepted: fewer pixels")
    return PictureError(f"{name} {problem}: {error}")


def _supported_formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _resolve_source(source: Any, local_files: bool) -> tuple[str, Any]:
    """A name for error messages, and the source in a form for PIL: an image or a byte stream."""
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
    return _shortened(os.fspath(source)), _open_path(os.fspath(source))


def _open_path(source: str | bytes) -> BinaryIO:
    """A regular file that is not empty, opened."""
    path, problem = os.fsdecode(source), None
    try:
        if os.path.isdir(path):
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
    raise PictureError(f"{_shortened(source)} {problem}")


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


def _to_rgb(image: Image.Image, name: str, max_pixels: int, max_side: int, apply_exif: bool) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise PictureError(f"{name} has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise PictureError(
            f"{name} is {width:,} x {height:,} pixels, {width * height:,} in all; "
            f"at most {max_pixels:,} are accepted"
        )
    if max(width, height) > max_side:
        raise PictureError(
            f"{name} is {width:,} x {height:,} pixels; at most {max_side:,} a side are accepted"
        )
    try:
        image.load()
        if apply_exif and (transpose := _TRANSPOSES.get(image.getexif().get(_ORIENTATION, 1))):
            image = image.transpose(transpose)
        if image.mode.startswith(("I", "F")):
            return _grey_to_rgb(image, name)
        if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # RGB at once would give the same, and a warning
        return image.convert("RGB")
    except PictureError:
        raise
    except Exception as error:  # PIL's decoders raise nearly anything on damaged data
        raise _failure(name, "is damaged or of a kind that can't be converted", error) from error


def _grey_to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise PictureError(f"{name} holds floating-point values; accepted: 8 or 16 bits a channel")
    values = np.asarray(image)
    least, most = int(values.min()), int(values.max())
    if least < 0 or most > 65535:
        raise PictureError(f"{name} holds values from {least} to {most}; accepted: 8 or 16 bits a channel")
    if image.mode.startswith("I;16") or most > 255:
        grey = np.empty(values.shape, np.uint8)
        for row, line in enumerate(values):  # one by one, since the sums take more memory than the pixels
            grey[row] = (line.astype(np.int32) + 128) // 257
    else:
        grey = values.astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
