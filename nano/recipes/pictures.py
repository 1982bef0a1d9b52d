"""Rendered pictures of the world of things: made ahead by all processors, and drawn from on the device.

N pictures, B of them drawn, K slots for things, H height, W width; 3 is red, green, blue; 4 is x0, y0, x1,
y1.
"""

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import torch
from torch import Tensor

from ...learn.packed import Arrays, build
from ..world.catalog import PAINTS, things
from ..world.pieces import ANY, PAINTED
from ..world.requests import MAX_THINGS, MIN_VISIBLE, Seen
from ..world.sampling import KINDS, MORE_KINDS, Example, sample_example
from .janus_spec import SIDE

SHARD = 250
"""Pictures of one task of a rendering process."""


def to_pixels(images_B3HW: Tensor) -> Tensor:
    """uint8 to -1..1, as the models' processors do."""
    return images_B3HW.float() * (2 / 255) - 1


def truth_arrays(pictures: Sequence[Sequence[Seen]]) -> Arrays:
    """What is in each picture, of the things that are visible enough: `thing` and `color` int64 `[N, K]`,
    indices of things() and PAINTS; `box` float32 `[N, K, 4]` in pixels; and `there` float32 `[N, K]`, whether
    a slot holds a thing."""
    names, paints, shape = list(things()), list(PAINTS), (len(pictures), MAX_THINGS)
    out: Arrays = {
        "thing": np.zeros(shape, np.int64),
        "color": np.zeros(shape, np.int64),
        "box": np.zeros((*shape, 4), np.float32),
        "there": np.zeros(shape, np.float32),
    }
    for i, seen in enumerate(pictures):
        for n, one in enumerate(s for s in seen if s.visible >= MIN_VISIBLE):
            out["thing"][i, n], out["color"][i, n] = names.index(one.thing), paints.index(one.color)
            out["box"][i, n], out["there"][i, n] = one.box, 1
    return out


def random_example(rng: Random) -> Example:
    """A picture of SIDE pixels with its sentence, of any kind, of the training split, and half of them as
    they are painted."""
    variety, kind = rng.choice((ANY, PAINTED)), rng.choice((*KINDS, *MORE_KINDS))
    return sample_example(kind, rng, "train", SIDE, SIDE, variety)


def picture_shard(seed: int) -> Arrays:
    """`pixels` uint8 `[N, H, W, 3]` of random pictures with `truth_arrays`."""
    rng = Random(seed)
    pictures = [random_example(rng).picture for _ in range(SHARD)]
    pixels = np.stack([picture.pixels_HW3 for picture in pictures])
    return {"pixels": pixels, **truth_arrays([picture.seen for picture in pictures])}


class PicturePool:
    """Rendered pictures on a device, to draw from: `arrays` by name, `pixels` among them."""

    def __init__(self, arrays: Arrays, device: str | torch.device) -> None:
        self.arrays = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        self.count = len(self.arrays["pixels"])

    @classmethod
    def render(
        cls,
        count: int,
        seed: int,
        workers: int,
        device: str | torch.device,
        shard: Callable[[int], Arrays] = picture_shard,
    ) -> "PicturePool":
        """At least `count` pictures, by this many processes."""
        return cls(build(shard, -(-count // SHARD), seed * 1_000_003, workers), device)

    def draw(self, count: int) -> dict[str, Tensor]:
        """Random rows of the arrays, by torch's generator of the device."""
        index = torch.randint(self.count, (count,), device=self.arrays["pixels"].device)
        return {name: array[index] for name, array in self.arrays.items()}
