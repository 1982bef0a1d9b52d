"""Tiles: which resolution a picture takes, how many tokens it becomes, and its pixels.

N tiles of a picture (the global view, then local ones row by row), S tile side in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..blocks.chat.image_io import resize_bicubic
from ..blocks.engine.sampling_params import check_integer

Size = tuple[int, int]
"""(width, height), in pixels or in tiles."""

MAX_CROPPED = 2
"""Conversations with more pictures than this get one local tile per picture."""


def select_best_resolution(size: Size, candidates: Sequence[Size]) -> Size:
    """The candidate that shows most of a picture's own pixels, and of those the one with the least rest.

    Scaled to fit into a candidate, a picture shows no more pixels than it has. The first of equals wins.
    """
    width, height = size
    best, best_shown, best_rest = candidates[0], 0, 0
    for index, (wide, high) in enumerate(candidates):
        scale = min(wide / width, high / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        rest = wide * high - shown
        if index == 0 or shown > best_shown or (shown == best_shown and rest < best_rest):
            best, best_shown, best_rest = (wide, high), shown, rest
    return best


def candidate_resolutions(max_tiles: int, tile: int) -> tuple[Size, ...]:
    """All resolutions of at most `max_tiles` tiles, in the order of the official list (which is that of 9).

    The paper (Wu et al. 2024, "DeepSeek-VL2", sec. 2.1) takes 9 and, for InfographicVQA, 18.
    """
    check_integer("max_tiles", max_tiles, low=1)
    grids = [(c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles // c + 1)]
    grids.sort(key=lambda grid: (grid[0] * grid[1], min(grid), grid[0]))
    return tuple((columns * tile, rows * tile) for columns, rows in grids)


def num_image_tokens(grid: Size, side: int) -> int:
    """Tokens of a picture with (columns, rows) local tiles of `side` x `side` tokens, newlines included."""
    columns, rows = grid
    return side * (side + 1) + 1 + rows * side * (columns * side + 1)


@dataclass(frozen=True)
class PixelRule:
    """From 0..255 to what the tower takes, and the colour of what pads a picture."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def background(self) -> tuple[int, int, int]:
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue

    def __call__(self, picture: Image.Image) -> Tensor:
        """Pixels float32 `[3, height, width]`."""
        pixels = np.asarray(picture).astype(np.float32) / np.float32(255)
        pixels = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def pad_to(picture: Image.Image, size: Size, background: tuple[int, int, int]) -> Image.Image:
    """The picture scaled to fit into `size` and centred there, rounded as `PIL.ImageOps.pad` rounds."""
    width, height = size
    ratio, wanted = picture.width / picture.height, width / height
    if ratio > wanted:
        height = round(picture.height / picture.width * width)
    elif ratio < wanted:
        width = round(picture.width / picture.height * height)
    # A very long picture would round to nothing.
    scaled = resize_bicubic(picture, (max(1, width), max(1, height)))
    canvas = Image.new("RGB", size, background)
    canvas.paste(scaled, (round((size[0] - scaled.width) * 0.5), round((size[1] - scaled.height) * 0.5)))
    return canvas


def cut_tiles(picture: Image.Image, best: Size, tile: int, rule: PixelRule) -> Tensor:
    """The tiles of an RGB picture, float32 `[N, 3, S, S]`: the whole in one, then cut at resolution `best`.

    Both views are made from the original: scaled to fit (bicubic) and padded on both sides.
    """
    whole = pad_to(picture, (tile, tile), rule.background)
    local = rule(pad_to(picture, best, rule.background))
    cut = local.unfold(1, tile, tile).unfold(2, tile, tile)  # [3, rows, columns, S, S]
    return torch.cat((rule(whole)[None], cut.permute(1, 2, 0, 3, 4).flatten(0, 1)))
