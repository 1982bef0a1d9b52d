"""What a vision tower can be taught directly: views of small-world pictures, and what each patch shows.

B pictures, V views of a picture (Janus: the picture; DeepSeek-VL2: the whole, then local tiles row by row),
S side of a view in pixels, P patches of a view (row by row), K places for things, 4 is x0, y0, x1, y1.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..world.scene import COLORS
from ..world.shapes import EXTENTS, SHAPES
from .constants import constant

NOTHING = len(SHAPES)
"""The class of a patch that shows no thing."""

_EXTENTS = tuple(tuple(EXTENTS[name]) for name in SHAPES)
_PALETTE = tuple(tuple(map(float, color)) for color in COLORS.values())
_LEAST = 0.1  # a box that covers less of a patch than this does not count as shown there


@dataclass(frozen=True)
class Views:
    """How a square picture of `picture` pixels becomes views of `side` pixels in patches of `patch`.

    `grid` local tiles along each side follow the whole picture; grid 0 means the whole picture alone.
    """

    picture: int
    side: int
    patch: int
    grid: int

    @property
    def patches(self) -> int:
        """Patches along a side of a view."""
        return self.side // self.patch

    @property
    def frames(self) -> tuple[tuple[float, ...], ...]:
        """The part of the picture that each of the V views shows, x0, y0, x1, y1 in units of its side."""
        whole = [(0.0, 0.0, 1.0, 1.0)]
        step = 1 / self.grid if self.grid else 0.0
        for row in range(self.grid):
            whole += [(c * step, row * step, (c + 1) * step, (row + 1) * step) for c in range(self.grid)]
        return tuple(whole)

    def cut(self, pixels_B3HW: Tensor) -> Tensor:
        """Pictures in -1..1 as views `[B, V, 3, S, S]`, as the model's processor makes them."""
        whole = pixels_B3HW
        if self.side != self.picture:
            size = (self.side, self.side)
            whole = F.interpolate(whole, size, mode="bicubic", antialias=True).clamp(-1, 1)
        if not self.grid:
            return whole[:, None]
        tiles = rearrange(pixels_B3HW, "b c (r h) (l w) -> b (r l) c h w", r=self.grid, l=self.grid)
        return torch.cat((whole[:, None], tiles), dim=1)


@dataclass(frozen=True)
class Labels:
    """Per patch: `shape` int64 `[B, V, P]` (NOTHING where there is none), `color` int64 `[B, V, P]`, and the
    visible part of the thing's box, `box` float32 `[B, V, P, 4]`, in units of the view's side."""

    shape: Tensor
    color: Tensor
    box: Tensor


def boxes_of(packed: dict[str, Tensor]) -> Tensor:
    """Boxes of packed scenes (see `render.pack`), float32 `[B, K, 4]`; empty where there is no thing."""
    extents = constant(_EXTENTS, packed["place"].device)
    place = packed["place"].float()
    half = extents[packed["shape"].long()] * place[..., 2:] / 2
    return torch.cat((place[..., :2] - half, place[..., :2] + half), dim=-1)


def color_numbers(packed: dict[str, Tensor]) -> Tensor:
    """Index into COLORS of each thing, int64 `[B, K]`: the nearest."""
    palette = constant(_PALETTE, packed["color"].device)
    return (packed["color"].float()[:, :, None] - palette).square().sum(-1).argmin(-1)


def label_patches(packed: dict[str, Tensor], views: Views) -> Labels:
    """What each patch of each view shows: the thing whose box covers most of it."""
    boxes_BK4 = boxes_of(packed)
    frames_V4 = constant(views.frames, boxes_BK4.device)
    start, span = frames_V4[:, :2].repeat(1, 2), (frames_V4[:, 2:] - frames_V4[:, :2]).repeat(1, 2)
    inside_BVK4 = ((boxes_BK4[:, None] - start[:, None]) / span[:, None]).clamp(0, 1)
    edges = torch.arange(views.patches, device=boxes_BK4.device) / views.patches
    low, high = inside_BVK4[..., None, :2], inside_BVK4[..., None, 2:]
    # Overlap with the columns and with the rows of patches, [B, V, K, patches, 2].
    reach = torch.minimum(high, (edges + 1 / views.patches)[:, None]) - torch.maximum(low, edges[:, None])
    reach = reach.clamp(min=0) * views.patches
    share_BVKP = (reach[..., None, :, 0] * reach[..., :, None, 1]).flatten(-2)
    best = share_BVKP.max(dim=2)
    pick = best.indices
    shape = packed["shape"].long()[:, None].expand(-1, len(frames_V4), -1).gather(2, pick)
    color = color_numbers(packed)[:, None].expand(-1, len(frames_V4), -1).gather(2, pick)
    box = inside_BVK4.gather(2, pick[..., None].expand(-1, -1, -1, 4))
    return Labels(torch.where(best.values > _LEAST, shape, NOTHING), color, box)
