"""Sprites: things as RGBA pictures of any size and color, from vector drawings rasterized by resvg.

A drawing's pixels are linear in its main color: with premultiplied RGB, `black + main * color / 255`, where
`black` is the drawing in black and `main` the share of the main color in each pixel. Each pose is therefore
rasterized twice, once and for all; sizes, colors, reflections and rotations are cheap.

Shape suffixes: H height, W width; 3 is red, green, blue; 4 is these and alpha.
"""

import io
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from PIL import Image

from ...blocks.errors import OptionError, ResourceError
from .catalog import PAINTS, places, thing

MASTER = 256
"""Pixels of a drawing's 108 units (100 and a margin of 4 on each side) in the cached master."""
MARGIN, UNITS = 4.0, 108.0
MAX_ANGLE = 20
"""The largest rotation, in degrees."""

_OPAQUE = 127  # alpha from which on a pixel belongs to a thing

_TINTS = {name: np.array(rgb, dtype=np.float32) / 255 for name, rgb in PAINTS.items()}


@dataclass
class Sprite:
    """A thing in one size and color, cropped to what is visible: what `sprite` was called with, and the frame
    of the drawing.

    left, top, scale: a point (x, y) of the drawing, in its units, is at pixel (x * scale - left, y * scale
    - top), where it is neither reflected nor rotated.
    """

    name: str
    pose: int
    color: str
    size: int
    flip: bool
    angle: int
    left: float
    top: float
    scale: float

    def __post_init__(self) -> None:
        """Find width and height, in pixels."""
        self._angle = -self.angle if self.flip else self.angle
        self.height, self.width = _scaled(self.name, self.pose, self.size, self._angle)[0].shape[:2]

    def _turn(self, pixels: np.ndarray) -> np.ndarray:
        """Reflected where the sprite is. Contiguous: NumPy adds and multiplies such arrays much faster."""
        return np.ascontiguousarray(pixels[:, ::-1] if self.flip else pixels)

    @cached_property
    def paint_HW3(self) -> np.ndarray:
        """Premultiplied red, green and blue: float32 in 0 to 255; read only."""
        black_HW3, shares_HW3 = _scaled(self.name, self.pose, self.size, self._angle)
        paint_HW3 = np.empty((self.height, self.width, 3), dtype=np.float32)
        for channel, tint in enumerate(_TINTS[self.color]):
            paint_HW3[..., channel] = black_HW3[..., channel] + shares_HW3[..., 1] * tint
        return self._turn(paint_HW3)

    @cached_property
    def through_HW3(self) -> np.ndarray:
        """The share of what is behind that shows through, the same for three channels: float32; read only."""
        alpha_HW = _scaled(self.name, self.pose, self.size, self._angle)[1][..., 0]
        return np.repeat(self._turn(1 - alpha_HW / np.float32(255))[..., None], 3, axis=-1)

    @cached_property
    def mask_HW(self) -> np.ndarray:
        """Whether a pixel is the thing's: bool; read only."""
        return self._turn(_scaled(self.name, self.pose, self.size, self._angle)[1][..., 0] > _OPAQUE)

    @cached_property
    def area(self) -> int:
        """The number of its pixels."""
        return int(self.mask_HW.sum())


def import_resvg() -> Any:
    """The module `resvg_py`. Raises ResourceError with the command that installs it."""
    try:
        import resvg_py
    except ImportError as error:
        raise ResourceError(
            "drawing the world of things needs the package resvg-py: pip install 'bifrons[world]'"
        ) from error
    return resvg_py


def rasterize(svg: str, width: int, height: int) -> np.ndarray:
    """An SVG as uint8 [H, W, 4], not premultiplied."""
    png = import_resvg().svg_to_bytes(svg_string=svg, width=width, height=height, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def _with_color(opening: str, elements: str, color: str) -> str:
    start = opening.index(">")
    return f'{opening[:start]} color="{color}"{opening[start:]}<g>{elements}</g></svg>'


@lru_cache(maxsize=512)
def _master(name: str, pose: int) -> tuple[Image.Image, Image.Image, tuple[int, int]]:
    """The black drawing as premultiplied RGB; alpha and the main color's share as red and green; left and top
    of both in the whole master."""
    drawing = thing(name).poses[pose]
    black, white = (
        rasterize(_with_color(thing(name).opening, drawing.elements, color), MASTER, MASTER).astype(
            np.float32
        )
        for color in ("#000", "#fff")
    )
    alpha_HW1 = black[..., 3:]
    black_HW3, white_HW3 = (rgba[..., :3] * alpha_HW1 / 255 for rgba in (black, white))
    main_HW = (white_HW3 - black_HW3).mean(-1).clip(0, 255)
    shares_HW3 = np.stack((alpha_HW1[..., 0], main_HW, main_HW), axis=-1)
    rows, columns = (np.flatnonzero((alpha_HW1[..., 0] > 8).any(axis)) for axis in (1, 0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    images = [Image.fromarray((a + 0.5).astype(np.uint8)).crop(box) for a in (black_HW3, shares_HW3)]
    return images[0], images[1], box[:2]


@lru_cache(maxsize=8192)
def _scaled(name: str, pose: int, size: int, angle: int) -> tuple[np.ndarray, np.ndarray]:
    """The black drawing, and alpha and the main color's share, at this size and rotation: uint8 [H, W, 3]
    each, cropped to what is visible."""
    images = _master(name, pose)[:2]
    width, height = images[0].size
    factor = size / max(width, height) * (2 if angle else 1)
    target = (max(1, round(width * factor)), max(1, round(height * factor)))
    images = [image.resize(target, Image.Resampling.HAMMING) for image in images]
    if not angle:
        return np.asarray(images[0]), np.asarray(images[1])
    # Rotated at twice the size, so that edges stay smooth.
    images = [image.rotate(angle, Image.Resampling.BILINEAR, expand=True).reduce(2) for image in images]
    black_HW3, shares_HW3 = map(np.asarray, images)
    rows, columns = (np.flatnonzero((shares_HW3[..., 0] > 8).any(axis)) for axis in (1, 0))
    area = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return black_HW3[area], shares_HW3[area]


@lru_cache(maxsize=1024)
def sprite(name: str, pose: int, color: str, size: int, flip: bool = False, angle: int = 0) -> Sprite:
    """A thing in a pose and one of PAINTS' colors; its longer side is `size` pixels before it is rotated.

    flip: reflected left to right. angle: counterclockwise, in whole degrees, up to MAX_ANGLE either way.
    Sprites are cached. Raises OptionError for an unknown thing, pose or color, a size below
    4 pixels and a larger angle.
    """
    if color not in PAINTS:
        raise OptionError(f"color {color!r} is unknown; accepted: {', '.join(PAINTS)}")
    if not 0 <= pose < len(thing(name).poses):
        raise OptionError(f"{name} has no pose {pose}; accepted: 0 to {len(thing(name).poses) - 1}")
    if size < 4 or abs(angle) > MAX_ANGLE:
        raise OptionError(
            f"size {size} at {angle} degrees; accepted: from 4 pixels, {-MAX_ANGLE} to {MAX_ANGLE} degrees"
        )
    width, height = _master(name, pose)[0].size
    left, top = _master(name, pose)[2]
    factor = size / max(width, height)
    scale = factor * MASTER / UNITS
    left, top = left * factor - MARGIN * scale, top * factor - MARGIN * scale
    return Sprite(name, pose, color, size, flip, angle, left, top, scale)


@lru_cache(maxsize=256)
def backdrop(name: str, variant: int, color: tuple[int, int, int], width: int, height: int) -> np.ndarray:
    """A place without things: float32 [H, W, 3] in 0 to 255, to be read only. Raises OptionError for
    others."""
    if name not in places() or not 0 <= variant < len(places()[name].variants):
        raise OptionError(f"place {name!r}, variant {variant} is unknown; accepted: {', '.join(places())}")
    place = places()[name]
    opening = place.opening.replace("<svg", f'<svg width="{width}" height="{height}"', 1)
    svg = _with_color(opening, place.variants[variant].elements, "rgb({}, {}, {})".format(*color))
    return rasterize(svg, width, height)[..., :3].astype(np.float32)
