"""What follows the generation of images step by step: callbacks with previews, and a progress bar.

N images, T image tokens of an image, S of them drawn so far, W columns of the grid.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from .errors import OptionError
from .progress import progress_bar


class GenerationStep(int):
    """The number of a step, from 1: the first argument of a callback."""

    _codes_NS: Tensor
    _total: int
    _decode: Callable[[Tensor], list[Image.Image]]

    @classmethod
    def of(cls, codes_NS: Tensor, total: int, decode: Callable[[Tensor], list[Image.Image]]) -> Self:
        """The step after which there are S of `total` codes; `decode` makes images of all codes `[N, T]`."""
        step = cls(codes_NS.shape[1])
        step._codes_NS, step._total, step._decode = codes_NS, total, decode
        return step

    def preview(self) -> list[Image.Image]:
        """The images so far, one for each row of the callback's codes: RGBA, transparent where nothing is
        painted yet. Decoding them takes as long as decoding finished images."""
        images = self._decode(fill_up(self._codes_NS, self._total))
        return [hide_unpainted(image, int(self), self._total) for image in images]


Callback = Callable[[GenerationStep, int, Tensor], object]
"""`callback(step, total, codes)`, called after each step with the codes so far, int64 `[N, S]`."""


def fill_up(codes_NS: Tensor, total: int) -> Tensor:
    """Codes `[N, total]` of images in work, whose first S codes are there.

    Each column of the square grid goes on with its last code: what stands below changes how the decoder
    paints what is above.
    """
    painted = codes_NS.shape[1]
    last_NW = codes_NS[:, max(0, painted - math.isqrt(total)) :]
    repeats = -(-(total - painted) // last_NW.shape[1])
    return torch.cat((codes_NS, last_NW.repeat(1, repeats)), dim=1)[:, :total]


def hide_unpainted(picture: Image.Image, done: int, total: int) -> Image.Image:
    """A preview, transparent where nothing is painted yet: `done` of `total` image tokens, row by row of a
    square grid."""
    side = math.isqrt(total)
    row, column = divmod(done, side)
    height, width = picture.height // side, picture.width // side
    mask = Image.new("L", picture.size)
    mask.paste(255, (0, 0, picture.width, row * height))
    mask.paste(255, (0, row * height, column * width, (row + 1) * height))
    preview = picture.convert("RGBA")
    preview.putalpha(mask)
    return preview


@contextmanager
def followed(callback: Callback | None, tokens: int, progress: bool | None) -> Iterator[Callback | None]:
    """What to call after each step: the `callback`, and a progress bar of all `tokens` of a call.

    The bar is on stderr. `progress` None shows it on a terminal and in a notebook only. Raises `OptionError`.
    """
    if progress not in (None, True, False):
        accepted = "True, False, or None for terminals and notebooks"
        raise OptionError(f"progress is {progress!r}; accepted: {accepted}")
    if callback is not None and not callable(callback):
        raise OptionError(f"callback is {callback!r}; accepted: a function of (step, total, codes), or None")
    with progress_bar(tokens, "painting", " tokens", progress) as bar:
        if bar.disable:
            yield callback
            return

        def advance(step: GenerationStep, total: int, codes: Tensor) -> None:
            bar.update(len(codes))
            if callback is not None:
                callback(step, total, codes)

        yield advance
