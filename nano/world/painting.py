"""Pictures of the world of things with their truth: what is where, in which color, how near and how visible.

Shape suffixes: H height, W width; 3 is red, green, blue.
"""

from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image

from ...blocks.errors import OptionError
from .layout import Arranger
from .pieces import ANY, Layout, Piece, Variety
from .requests import Request, Seen, satisfies
from .scene import Box
from .sprites import backdrop

MAX_ATTEMPTS = 240
MIN_SIDE, MAX_SIDE = 64, 2048
_SHADOW = 0.26  # opacity of the shadow under a thing that stands on the ground


@dataclass(frozen=True)
class Sign:
    """A board in a picture: its words as they are written, and its box in pixels, without a post. letters:
    each with its box, spaces left out."""

    words: str
    box: Box
    letters: tuple[tuple[str, Box], ...] = ()


@dataclass(frozen=True)
class Picture:
    """pixels_HW3: uint8. seen: the things from far to near. owner_HW: int8, the index in `seen` of the
    thing that is visible in each pixel, -1 for the background. layout: what it was drawn from. sign: see
    `signs.py`."""

    pixels_HW3: np.ndarray
    seen: tuple[Seen, ...]
    owner_HW: np.ndarray
    layout: Layout
    sign: Sign | None = None

    @property
    def place(self) -> str:
        """The background's name."""
        return self.layout.place.name

    def image(self) -> Image.Image:
        """The picture as an RGB image."""
        return Image.fromarray(self.pixels_HW3)


@lru_cache(maxsize=256)
def _shadow(width: int, height: int) -> np.ndarray:
    """Light that an elliptic shadow with soft edges lets through, [height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot((x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1)
    light_HW = (1 - _SHADOW * np.clip((1 - distance) * 3, 0, 1)).astype(np.float32)
    return np.repeat(light_HW[..., None], 3, axis=-1)


def _cast_shadow(canvas_HW3: np.ndarray, piece: Piece) -> None:
    x0, _, x1, y1 = map(int, piece.box)
    height = max(4, (x1 - x0) // 7)
    top, bottom = max(0, y1 - height * 2 // 3), min(len(canvas_HW3), y1 - height * 2 // 3 + height)
    shadow = _shadow(x1 - x0, height)[: bottom - top]
    canvas_HW3[top:bottom, x0:x1] *= shadow


def _blend(
    canvas_HW3: np.ndarray, owner_HW: np.ndarray, piece: Piece, number: int, first_row: int = 0
) -> None:
    """Draw a piece; of rows above `first_row` of the picture nothing."""
    x0, y0, x1, y1 = map(int, piece.box)
    start = max(0, first_row - y0)
    area = (slice(y0 + start, y1), slice(x0, x1))
    canvas_HW3[area] *= piece.sprite.through_HW3[start:]
    canvas_HW3[area] += piece.sprite.paint_HW3[start:]
    owner_HW[area][piece.sprite.mask_HW[start:]] = number


def compose(layout: Layout, width: int, height: int) -> Picture:
    """Draw a layout, and measure what is visible."""
    canvas_HW3 = backdrop(layout.place.name, layout.variant, layout.color, width, height).copy()
    owner_HW = np.full((height, width), -1, dtype=np.int8)
    numbers = {id(piece): number for number, piece in enumerate(layout.pieces)}
    for piece in layout.pieces:
        if piece.grounded:
            _cast_shadow(canvas_HW3, piece)
        _blend(canvas_HW3, owner_HW, piece, numbers[id(piece)])
        if piece.holder is not None and (front := piece.holder.front()) is not None:
            _blend(canvas_HW3, owner_HW, piece.holder, numbers[id(piece.holder)], front)
    counts = np.bincount((owner_HW + 1).ravel(), minlength=len(layout.pieces) + 1)[1:]
    seen = []
    for number, piece in enumerate(layout.pieces):
        visible = int(counts[number]) / max(piece.sprite.area, 1)
        seen.append(Seen(piece.thing.name, piece.color, piece.pose, piece.box, number, visible))
    pixels_HW3 = np.minimum(canvas_HW3 + 0.5, 255, out=canvas_HW3).astype(np.uint8)
    return Picture(pixels_HW3, tuple(seen), owner_HW, layout)


def paint(
    request: Request,
    rng: Random,
    width: int = 192,
    height: int = 192,
    split: str = "any",
    variety: Variety = ANY,
) -> Picture:
    """A random picture that shows what the request says and nothing else.

    The same request and state of `rng` give the same picture. split: "train" draws no thing in a color held
    out for it unless the request names it. Raises OptionError for sides out of range, and for a request
    without a picture, such as one in which a thing is left and right of another.
    """
    if not MIN_SIDE <= min(width, height) <= max(width, height) <= MAX_SIDE:
        raise OptionError(f"{width} x {height} pixels; accepted: sides of {MIN_SIDE} to {MAX_SIDE}")
    arranger = Arranger(request, rng, width, height, split, variety)
    for _ in range(MAX_ATTEMPTS):
        layout = arranger.attempt()
        if layout is not None:
            picture = compose(layout, width, height)
            if satisfies(request, picture.seen):
                return picture
    raise OptionError(f"no picture was found that shows {request}; do its relations contradict each other?")
