"""Pictures of the small world, drawn on the device from packed scenes."""

from collections.abc import Mapping
from functools import lru_cache
from random import Random

import torch
from torch import Tensor

from ..world.renderer import pack, render_packed
from ..world.scene import Scene
from ..world.shapes import SHAPES
from .datasets import training_scene
from .things_pictures import to_pixels

SIDE = 128
"""Side of a picture in pixels."""
OFF_LATTICE = 0.2
"""Share of the scenes that are moved off the world's lattice; see `jitter`."""
Numbers = tuple[float, ...] | tuple[tuple[float, ...], ...]
Packed = Mapping[str, Tensor]
"""Packed scenes: `shape`, `place`, `color` and `background` of `renderer.pack`, with a row for each."""


def jitter(scenes: Packed, share: float = OFF_LATTICE) -> dict[str, Tensor]:
    """Packed scenes, a share of them moved off the world's lattice by up to half a step and rescaled."""
    place = scenes["place"].float()
    chosen = (torch.rand(len(place), 1, 1, device=place.device) < share).float()
    shift = (torch.rand(len(place), 1, 2, device=place.device) - 0.5) / 32
    scale = 1 + (torch.rand(len(place), 1, 1, device=place.device) - 0.5) * 0.1
    moved = torch.cat((place[..., :2] + chosen * shift, place[..., 2:] * (1 + chosen * (scale - 1))), dim=-1)
    return {**scenes, "place": moved}


def draw_pixels(scenes: Packed) -> Tensor:
    """Pictures of square scenes in -1..1, `[B, 3, SIDE, SIDE]`, on the scenes' device."""
    place = scenes["place"].float()
    packed = {**scenes, "place": place, "aspect": torch.ones(())}
    return to_pixels(render_packed(packed, SIDE, place.device, SHAPES))


def sample_scenes(seed: int, count: int) -> list[Scene]:
    """Scenes of every kind of the training split."""
    rng = Random(seed)
    return [training_scene(rng, index) for index in range(count)]


class ScenePool:
    """Packed scenes on a device, to draw from."""

    def __init__(self, seed: int, count: int, device: str | torch.device) -> None:
        packed = pack(sample_scenes(seed, count))
        self.packed = {name: value.to(device) for name, value in packed.items() if value.ndim}
        self.count, self.device = count, torch.device(device)

    def draw(self, count: int) -> dict[str, Tensor]:
        """Random scenes, some of them jittered."""
        index = torch.randint(self.count, (count,), device=self.packed["place"].device)
        return jitter({name: value[index] for name, value in self.packed.items()})


@lru_cache(maxsize=64)
def _constant(values: Numbers, device: str) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def constant(values: Numbers, device: str | torch.device) -> Tensor:
    """`values` as float32 on a device; not to be written to. Copied there at the first call only: a captured
    step may copy nothing from the host."""
    return _constant(values, str(device))
