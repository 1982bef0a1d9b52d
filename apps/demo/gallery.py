"""Painted pictures on the tab *Create*: how they are shown, and what is said about them."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ...blocks.errors import BifronsError
from ...blocks.image_io import text_chunks

_CRISP = 128
"""Pictures up to this side are shown at whole multiples of their size."""


def gallery_columns(count: int) -> int:
    """The columns in which so many pictures are shown."""
    return 1 if count == 1 else 2 if count <= 4 else 3


def gallery_class(pictures: Sequence[Image.Image]) -> list[str]:
    """The CSS classes of the gallery for some pictures."""
    if any(max(picture.size) > _CRISP for picture in pictures):
        return []
    return ["bf-crisp", "bf-one"] if len(pictures) == 1 else ["bf-crisp"]


def open_painted(file: str) -> Image.Image:
    """A painted picture, its settings in `info`. Raises `BifronsError` if its file has been deleted."""
    if not Path(file).exists():
        raise BifronsError("the server has deleted this picture to make room for newer ones; paint it again")
    with Image.open(file) as picture:
        picture.load()
    return picture


def stored_settings(file: str) -> dict[str, str]:
    """The settings in a painted picture's file."""
    return text_chunks(open_painted(file))


def caption(settings: dict[str, str]) -> str:
    """A picture's caption, also its alternative text."""
    return f"{settings['prompt']}, seed {settings['seed']}"


def details(files: Sequence[str], index: int) -> str:
    """The settings of one of some pictures, in a line."""
    settings = stored_settings(files[index])
    place = f"Picture {index + 1} of {len(files)}: " if len(files) > 1 else ""
    return (
        f"{place}seed {settings['seed']} · guidance {settings['guidance_scale']} · "
        f"temperature {settings['temperature']} · {settings['model']}"
    )
