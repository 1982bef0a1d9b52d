"""Pictures of the world of things that are blurred, compressed, scaled, or cut: what a painted picture may
look like."""

import io
from dataclasses import replace
from random import Random

import numpy as np
from PIL import Image, ImageFilter

from ...blocks.errors import OptionError
from .painting import Picture
from .requests import Seen

DEGRADATIONS = ("blurred", "jpeg", "scaled", "cut")


def degrade(picture: Picture, how: str, rng: Random) -> tuple[np.ndarray, tuple[Seen, ...]]:
    """Pixels uint8 [H, W, 3], and the truth about them. how: one of DEGRADATIONS, or "none".

    "blurred": by 0.5 to 1.5 pixels (the standard deviation). "jpeg": quality 25 to 75. "scaled": down by a
    factor of 1.3 to 2.5 and up again. "cut": a rectangle at a side of one thing is filled with the color
    beside it; `visible` counts what is left. Raises OptionError for others.
    """
    if how == "none":
        return picture.pixels_HW3, picture.seen
    if how not in DEGRADATIONS:
        raise OptionError(f"{how!r} is no degradation; accepted: none, {', '.join(DEGRADATIONS)}")
    if how == "cut":
        return _cut(picture, rng)
    image = picture.image()
    if how == "blurred":
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5)))
    elif how == "jpeg":
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=rng.randint(25, 75))
        image = Image.open(stream)
    else:
        factor = rng.uniform(1.3, 2.5)
        small = image.resize((round(image.width / factor), round(image.height / factor)))
        image = small.resize(image.size, Image.Resampling.BICUBIC)
    return np.asarray(image), picture.seen


def _cut(picture: Picture, rng: Random) -> tuple[np.ndarray, tuple[Seen, ...]]:
    """Fill a rectangle that takes 15% to 90% of one thing's box away, from one of its four sides."""
    pixels_HW3 = picture.pixels_HW3.copy()
    height, width = pixels_HW3.shape[:2]
    x0, y0, x1, y1 = map(int, rng.choice(picture.seen).box)
    share, side = rng.uniform(0.15, 0.9), rng.randrange(4)
    across, down = round(share * (x1 - x0)), round(share * (y1 - y0))
    left, right = ((x0, x0 + across), (x1 - across, x1), (x0, x1), (x0, x1))[side]
    top, bottom = ((y0, y1), (y0, y1), (y0, y0 + down), (y1 - down, y1))[side]
    left, top = max(left - 2, 0), max(top - 2, 0)
    right, bottom = min(right + 2, width), min(bottom + 2, height)
    # The color beside the box, where nothing is.
    free = picture.owner_HW[top:bottom] < 0
    beside = picture.pixels_HW3[top:bottom][free]
    pixels_HW3[top:bottom, left:right] = np.median(beside, axis=0) if len(beside) else 127
    gone = np.zeros((height, width), dtype=bool)
    gone[top:bottom, left:right] = True
    seen = []
    for number, one in enumerate(picture.seen):
        visible_HW = picture.owner_HW == number
        left = (visible_HW & ~gone).sum() / max(1, visible_HW.sum())
        seen.append(replace(one, visible=one.visible * float(left)))
    return pixels_HW3, tuple(seen)
