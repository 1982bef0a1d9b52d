"""Tiling (Wu et al. 2024, "DeepSeek-VL2", sec. 2.1): resolutions, numbers of tokens, and pixels of images.

N tiles of an image (the global view, then local tiles row by row), S tile side in pixels. Imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from ..blocks.errors import check_integer
from ..blocks.image_fit import FittedImage, as_tiles, normalization_table, resize_bicubic

Size = tuple[int, int]
"""(width, height), in pixels or in tiles."""

MAX_CROPPED = 2
"""Conversations with more images than this get one local tile per image."""


def select_best_resolution(size: Size, candidates: Sequence[Size]) -> Size:
    """The candidate resolution that keeps the most of an image's pixels, then the one with the least padding.

    Upscaling does not add to the pixels kept. Of equal candidates the first wins.
    """
    width, height = size

    def kept_and_padding(candidate: Size) -> tuple[int, int]:
        scale = min(candidate[0] / width, candidate[1] / height)
        kept_pixels = min(int(width * scale) * int(height * scale), width * height)
        return kept_pixels, kept_pixels - candidate[0] * candidate[1]

    return max(candidates, key=kept_and_padding)


def candidate_resolutions(max_tiles: int, tile: int) -> tuple[Size, ...]:
    """All resolutions of at most `max_tiles` tiles, in the order of the official list, which is that for 9.

    The paper uses 9 and, for InfographicVQA, 18. Raises `OptionError` for less than 1.
    """
    check_integer("max_tiles", max_tiles, low=1)
    grids = [(c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles // c + 1)]
    grids.sort(key=lambda grid: (grid[0] * grid[1], min(grid), grid[0]))
    return tuple((columns * tile, rows * tile) for columns, rows in grids)


def num_image_tokens(grid: Size, side: int) -> int:
    """Tokens of an image with (columns, rows) local tiles of `side` x `side` tokens, newlines included."""
    columns, rows = grid
    return side * (side + 1) + 1 + rows * side * (columns * side + 1)


@dataclass(frozen=True)
class PixelNormalization:
    """Maps pixels in 0..255 to the vision encoder's input: `(pixels / 255 - mean) / std` per channel."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def background(self) -> tuple[int, int, int]:
        """The colour of padding."""
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue

    @cached_property
    def table(self) -> np.ndarray:
        """The `normalization_table` of the pixels."""
        return normalization_table(np.arange(256, dtype=np.float32) / np.float32(255), self.mean, self.std)


def place_in(image: Size, size: Size) -> tuple[Size, Size]:
    """An image scaled to fit into `size` and centred there, rounded as `PIL.ImageOps.pad` rounds: its left
    top corner and its size."""
    width, height = size
    ratio, target_ratio = image[0] / image[1], width / height
    if ratio > target_ratio:
        height = round(image[1] / image[0] * width)
    elif ratio < target_ratio:
        width = round(image[0] / image[1] * height)
    # A very elongated image would round to 0 pixels.
    width, height = max(1, width), max(1, height)
    return (round((size[0] - width) * 0.5), round((size[1] - height) * 0.5)), (width, height)


def pad_to(image: Image.Image, size: Size, background: tuple[int, int, int]) -> Image.Image:
    """The image in `size`, as `place_in` says, on a background."""
    corner, scaled = place_in(image.size, size)
    canvas = Image.new("RGB", size, background)
    canvas.paste(resize_bicubic(image, scaled), corner)
    return canvas


def cut_tiles(
    image: Image.Image, resolution: Size, tile: int, background: tuple[int, int, int]
) -> np.ndarray:
    """The tiles of an RGB image, uint8 [N, 3, S, S]: the global view, then the local tiles.

    Each view is the original scaled to fit (bicubic), centred and padded.
    """
    views = [pad_to(image, size, background) for size in ((tile, tile), resolution)]
    return np.concatenate([as_tiles(view, tile) for view in views])


def cut_best_tiles(
    image: Image.Image, candidates: Sequence[Size], tile: int, background: tuple[int, int, int]
) -> FittedImage:
    """`cut_tiles` at the best of some resolutions."""
    best = select_best_resolution(image.size, candidates)
    return FittedImage(cut_tiles(image, best, tile, background), image.size)
