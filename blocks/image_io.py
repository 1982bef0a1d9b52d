"""Reads images from users as RGB, and the settings in generated ones; writes PNG with text chunks."""

import threading
import warnings
import zlib
from typing import Any, BinaryIO, TypedDict

import numpy as np
from PIL import Image, TiffTags

from .errors import OptionError, PictureError, shown
from .generated_image import ASCII, EXIF_IFD, USER_COMMENT, png_text, text_chunks
from .image_limits import check_exif, check_header
from .image_source import resolve_source
from .json_config import decode_json

MAX_PIXELS = 64_000_000
"""Largest image that is decoded by default: 256 MB as Pillow holds RGB, more than most cameras produce."""
MAX_SIDE = 65_535
"""Longest side by default, that of JPEG. Resizing makes an intermediate image of the model's width and the
input's height, which for an input one pixel wide is hundreds of times its size."""


class ReadOptions(TypedDict, total=False):
    """How `open_image` reads images of messages; its defaults hold for what is not given."""

    exif: str
    local_files: bool


FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted file formats. PIL reads more, but some of those start other programs (EPS)."""

_ORIENTATION = 0x0112
_EXIF_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
"""Where Pillow finds an orientation in an image's `info`."""
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


def write_png(image: Image.Image, stream: BinaryIO) -> None:
    """Write an image as PNG with its `text_chunks`."""
    # For filtered rows, run lengths give files as small as a search for repetitions, 2 to 6 times as fast.
    image.save(stream, format="PNG", pnginfo=png_text(image), compress_type=zlib.Z_RLE)


def open_image(
    source: Any,
    *,
    max_pixels: int = MAX_PIXELS,
    max_side: int = MAX_SIDE,
    exif: str = "apply",
    local_files: bool = True,
) -> Image.Image:
    """A new RGB image, without EXIF, from any of the forms in which programs hand over images.

    A source is a path (`~` is the user's folder), bytes, an open binary file, a `data:` URL, base64, a PIL
    image (which is left unchanged), an array or a tensor.

    =========================  =====================================================================
    RGB                        unchanged
    EXIF orientation           applied, so that the image is upright; `exif="ignore"` leaves it as the
                               official processors do (Pillow itself turns TIFF files). EXIF that is
                               damaged is ignored
    animated (GIF, APNG, ...)  the first frame; of a PIL image the current frame
    alpha (RGBA, LA)           the alpha channel is dropped, as in the official processors
    palette, with alpha too    the palette's colours; a transparent entry shows the colour it hides
    1 bit, grey                grey
    CMYK, YCbCr, HSV           PIL's conversion (no colour profiles)
    16-bit grey                each value / 257, rounded (the official code clips or wraps it)
    32-bit integer grey        as 8 bits up to 255, as 16 bits up to 65535, else refused
    floating point             refused: the value of white is unknown
    array, tensor              [height, width], alone or with 1, 3 or 4 channels as the last axis, or as
                               the first if the last can't be them; floats are from 0 to 1
    more than `max_pixels`     refused from the header, before anything is decoded
    a side over `max_side`     refused in the same way
    what costs more to decode  refused in the same way: see `image_limits`
    =========================  =====================================================================

    `max_pixels` can't exceed PIL's own limit (`2 * Image.MAX_IMAGE_PIXELS`). With `local_files` false, paths
    are refused: use it for requests from a network. Nothing is ever downloaded.
    Raises PictureError for anything that is not an image, is damaged, is refused or exceeds the free memory,
    and OptionError for another `exif`.
    """
    if exif not in ("apply", "ignore"):
        raise OptionError(f"exif is {shown(exif)}; accepted: apply or ignore")
    name, opened = resolve_source(source, local_files, max_pixels)
    if isinstance(opened, Image.Image):
        return _to_rgb(opened, name, max_pixels, max_side, exif)
    with opened, _open_file(opened, name, max_pixels) as image:
        return _to_rgb(image, name, max_pixels, max_side, exif)


def open_generated(source: Any) -> tuple[Image.Image, dict[str, str]]:
    """A new RGB image as `open_image` gives it, and the texts that its file holds: those of PNG, and the
    settings of a `GeneratedImage` in EXIF. They are as foreign as the file. Raises `PictureError`."""
    name, opened = resolve_source(source, True, MAX_PIXELS)
    if isinstance(opened, Image.Image):
        return _to_rgb(opened, name, MAX_PIXELS, MAX_SIDE, "apply"), text_chunks(opened)
    with opened, _open_file(opened, name, MAX_PIXELS) as image:
        rgb = _to_rgb(image, name, MAX_PIXELS, MAX_SIDE, "apply")  # which has checked the size of EXIF
        return rgb, {**_user_comment(image), **text_chunks(image)}


def _user_comment(image: Image.Image) -> dict[str, str]:
    """The texts of a JSON object in the UserComment of EXIF; none if there is anything else."""
    try:
        with _WARNINGS_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
        texts = decode_json(comment.removeprefix(ASCII))
        return {name: text for name, text in texts.items() if isinstance(text, str)}
    except Exception:  # PIL's readers raise nearly anything on damaged EXIF
        return {}


def _open_file(stream: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """The image in a file, with its header and metadata read but nothing decoded."""
    try:
        check_header(stream, max_pixels)
        with _WARNINGS_LOCK, warnings.catch_warnings():
            # Size and damage are checked here; PIL's warnings about them would be noise on stderr.
            warnings.simplefilter("ignore")
            image = Image.open(stream, formats=_supported_formats())
            if image.format == "TIFF":
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
    """Read what decoding a TIFF file would read later, with warnings."""
    exif = image.getexif()
    for tag in () if getattr(image, "is_animated", False) else TiffTags.TAGS_V2_GROUPS:
        if tag in exif:
            exif.get_ifd(tag)


def _upright(image: Image.Image, name: str) -> Image.Image:
    """A decoded image as its EXIF orientation says; as it is if EXIF is missing or damaged.

    Raises `PictureError` for EXIF that would cost too much.
    """
    try:
        data = image.info.get("exif", b"")
        if not data and (lines := image.info.get("Raw profile type exif")):  # a text chunk of PNG
            data = bytes.fromhex("".join(lines.split("\n")[3:]))
        check_exif(data)
        with _WARNINGS_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            transpose = _TRANSPOSES.get(image.getexif().get(_ORIENTATION, 1))
    except PictureError as error:
        raise PictureError(f"{name} is refused: {error}") from error
    except Exception:  # PIL's readers raise nearly anything on damaged EXIF
        return image
    return image if transpose is None else image.transpose(transpose)


def _failure(name: str, problem: str, error: Exception) -> PictureError:
    """The error for an image that PIL can't read; some decoders report too little memory in words only."""
    if isinstance(error, MemoryError) or "memory" in str(error).lower():
        problem, error = "takes more memory to decode than there is", MemoryError("accepted: fewer pixels")
    return PictureError(f"{name} {problem}: {error}")


def _supported_formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _to_rgb(image: Image.Image, name: str, max_pixels: int, max_side: int, exif: str) -> Image.Image:
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
        image = _upright(image, name) if exif == "apply" else image
        if image.mode.startswith(("I", "F")):
            return _grey_to_rgb(image, name)
        if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # RGB at once would give the same, and a warning
        rgb = image.convert("RGB")
        for key in _EXIF_KEYS:  # it has been applied, and must not be again
            rgb.info.pop(key, None)
        return rgb
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
