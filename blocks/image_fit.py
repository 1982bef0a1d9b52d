"""Images fitted to what a model reads, in 8 bits, and their normalization.

N tiles of an image, S tile side in pixels. Imports no torch, so that light processes can fit images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True, eq=False)
class FittedImage:
    """An image as a model reads it: tiles uint8 [N, 3, S, S]; `size` (width, height) is the original's."""

    tiles: np.ndarray
    size: tuple[int, int]


Fit = Callable[[Image.Image], FittedImage]
"""Fits an RGB image to a model; can be pickled."""


def resize_bicubic(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image resized to `size` (width, height), horizontally first and then vertically.

    The models were trained with this order, which matters because the intermediate result is rounded to
    8 bits. From version 13 on, Pillow picks the cheaper order when both axes are resized in one call.
    """
    horizontal = image.resize((size[0], image.height), Image.Resampling.BICUBIC)
    return horizontal.resize(size, Image.Resampling.BICUBIC)


def as_tiles(image: Image.Image, tile: int) -> np.ndarray:
    """An RGB image cut into tiles, row by row: uint8 [N, 3, tile, tile]."""
    columns, rows = image.width // tile, image.height // tile
    cut = np.asarray(image).reshape(rows, tile, columns, tile, 3)
    return np.ascontiguousarray(cut.transpose(0, 2, 4, 1, 3)).reshape(-1, 3, tile, tile)


def normalization_table(
    levels: np.ndarray, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> np.ndarray:
    """The normalized value of each channel and level, float32 [3, 256].

    `levels` float32 [256] are the levels 0 to 255 rescaled to 0..1. `mean` is subtracted from them and `std`
    divides the result.
    """
    return (levels - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


def normalized(images: Sequence[FittedImage], table: np.ndarray, side: int) -> np.ndarray:
    """The tiles of all images, normalized by a `normalization_table`: float32 [N, 3, side, side]."""
    tiles = [image.tiles for image in images]
    pixels = np.empty((sum(map(len, tiles)), 3, side, side), np.float32)
    for row, tile in enumerate(tile for of_image in tiles for tile in of_image):
        for channel in range(3):
            # In this mode, which is the fastest, nothing is clipped: all levels are in the table.
            np.take(table[channel], tile[channel], out=pixels[row, channel], mode="clip")
    return pixels
