"""`GeneratedImage`: a PIL image that writes what it was generated from into the files that it is saved to.

The settings are the texts in `info`. A PNG file has each as a text chunk of its name; JPEG, WebP and AVIF
files have all of them as a JSON object in the UserComment of EXIF.
"""

import hashlib
import json
import os
from typing import Any, NamedTuple, Self

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .errors import OptionError

EXIF_FORMATS = ("AVIF", "JPEG", "WEBP")
"""Formats, besides PNG, whose files hold settings."""
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
ASCII = b"ASCII\0\0\0"
"""What EXIF puts before the text of a UserComment to name its encoding."""

_MOST_EXIF = 65_000
"""Bytes of EXIF in a JPEG file, rounded down: the length of a segment has 16 bits."""


def text_chunks(image: Image.Image) -> dict[str, str]:
    """The strings in an image's `info`, such as the settings of the pipeline that generated it."""
    pairs = image.info.items()
    return {name: value for name, value in pairs if isinstance(name, str) and isinstance(value, str)}


def pixel_digest(image: Image.Image) -> str:
    """16 hexadecimal digits that tell whether two images have the same size and pixels."""
    content = hashlib.sha256(f"{image.mode} {image.width}x{image.height} ".encode())
    content.update(image.tobytes())
    return content.hexdigest()[:16]


def png_text(image: Image.Image, own: PngInfo | None = None) -> PngInfo:
    """The text chunks to save an image with: `own`, and the `text_chunks` of other names.

    They are `tEXt`, or `iTXt` for text beyond Latin-1.
    """
    chunks, given = PngInfo(), own.chunks if own is not None else []
    chunks.chunks = list(given)
    names = {bytes(chunk[1]).split(b"\0", 1)[0] for chunk in given}
    for name, value in text_chunks(image).items():
        if name.encode("latin-1", "ignore") not in names:
            chunks.add_text(name, value)
    return chunks


def exif_with_settings(image: Image.Image, own: Image.Exif | bytes | None = None) -> bytes:
    """The EXIF to save an image with: `own`, and the settings as its UserComment unless it has one.

    Raises `OptionError` for settings that are too long for it.
    """
    exif = Image.Exif()
    exif.load(own.tobytes() if isinstance(own, Image.Exif) else own or b"")
    comment = ASCII + json.dumps(text_chunks(image)).encode("ascii")
    if len(comment) > _MOST_EXIF:
        raise OptionError(
            f"the settings of this picture take {len(comment):,} bytes, and EXIF holds {_MOST_EXIF:,}; "
            "accepted: a PNG file, or an empty `picture.info`, without which no settings are written"
        )
    exif.get_ifd(EXIF_IFD).setdefault(USER_COMMENT, comment)
    return exif.tobytes()


class GeneratedImage(Image.Image):
    """A PIL image with the settings that it was generated from in `info`, which `save` writes into the file.

    `info.clear()` before `save` leaves them out. Copies keep them; what else is made from the image
    (`resize`, `crop`, `convert`) is a plain PIL image. `info["pixels"]` is the `pixel_digest` when it was
    generated, which tells whether it has been drawn on or scaled in place since.
    """

    @classmethod
    def of(cls, image: Image.Image, settings: dict[str, Any] | None = None) -> Self:
        """A copy of an image with its own `info`, or with settings to which the pixels' digest is added."""
        info = dict(image.info) if settings is None else {**settings, "pixels": pixel_digest(image)}
        generated = cls()
        generated.__setstate__([info, image.mode, image.size, image.getpalette(), image.tobytes()])
        return generated

    def copy(self) -> Self:
        """A copy of the image, with a copy of its settings."""
        return type(self).of(self)

    __copy__ = copy

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """`PIL.Image.Image.save`, which also writes the settings where the format has a place for them.

        A `pnginfo` or `exif` that is given is written too, and wins where both have the same entry. Raises
        `OptionError` for settings that are too long for EXIF.
        """
        kind = (format or _format_of(fp)).upper()
        if kind == "PNG" and text_chunks(self):
            params["pnginfo"] = png_text(self, params.get("pnginfo"))
        elif kind in EXIF_FORMATS and text_chunks(self):
            params["exif"] = exif_with_settings(self, params.get("exif"))
        super().save(fp, format, **params)


class GeneratedImages(NamedTuple):
    """The result of calling a pipeline, in the form of diffusers: `pipe(prompt).images`."""

    images: list[Image.Image]


def _format_of(fp: Any) -> str:
    """The format that PIL takes for a path or an open file, by the name's ending; empty if it knows none."""
    name = fp if isinstance(fp, str | bytes | os.PathLike) else getattr(fp, "name", "")
    if not isinstance(name, str | bytes | os.PathLike):  # the number of an open file
        return ""
    return Image.registered_extensions().get(os.path.splitext(os.fsdecode(name))[1].lower(), "")
