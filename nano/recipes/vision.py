"""A vision encoder learns the small world before the language model.

Every patch learns to name the object that covers it, its color and its box, by linear heads that are thrown
away afterwards. So the language model starts from features that hold the answers; else it would have to learn
them through the few words of the answers.

B images, V views of an image (Janus: the image; DeepSeek-VL2: the whole, then local tiles row by row),
S side of a view in pixels, P patches of a view (row by row), K slots for objects, 4 is x0, y0, x1, y1.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...blocks.model.siglip import SiglipConfig, build_siglip
from ...learn.pretraining import Objective
from ...learn.scratch import initialize
from ..world.scene import COLORS
from ..world.shapes import EXTENTS, SHAPES
from .janus_spec import tower_config as janus_tower
from .pictures import SIDE, Packed, ScenePool, constant, draw_pixels
from .vl2_spec import TILES
from .vl2_spec import tower_config as vl2_tower

NOTHING = len(SHAPES)
"""The class of a patch that shows no object."""

_EXTENTS = tuple(tuple(EXTENTS[name]) for name in SHAPES)
_PALETTE = tuple(tuple(map(float, color)) for color in COLORS.values())
_MIN_COVERAGE = 0.1  # of a patch by a box; below it the patch shows nothing


@dataclass(frozen=True)
class Views:
    """How a square image of `image` pixels becomes views of `side` pixels in patches of `patch`.

    `grid` local tiles along each side follow the whole image; grid 0 means the whole image alone.
    """

    image: int
    side: int
    patch: int
    grid: int

    @property
    def patches(self) -> int:
        """Patches along a side of a view."""
        return self.side // self.patch

    @property
    def frames(self) -> tuple[tuple[float, ...], ...]:
        """The part of the image that each of the V views shows, x0, y0, x1, y1 in units of its side."""
        whole = [(0.0, 0.0, 1.0, 1.0)]
        step = 1 / self.grid if self.grid else 0.0
        for row in range(self.grid):
            whole += [(c * step, row * step, (c + 1) * step, (row + 1) * step) for c in range(self.grid)]
        return tuple(whole)

    def cut(self, pixels_B3HW: Tensor) -> Tensor:
        """Images in -1..1 as views `[B, V, 3, S, S]`, as the model's processor makes them."""
        whole = pixels_B3HW
        if self.side != self.image:
            size = (self.side, self.side)
            whole = F.interpolate(whole, size, mode="bicubic", antialias=True).clamp(-1, 1)
        if not self.grid:
            return whole[:, None]
        tiles = rearrange(pixels_B3HW, "b c (r h) (l w) -> b (r l) c h w", r=self.grid, l=self.grid)
        return torch.cat((whole[:, None], tiles), dim=1)


@dataclass(frozen=True)
class Labels:
    """Per patch: `shape` int64 `[B, V, P]` (NOTHING where there is none), `color` int64 `[B, V, P]`, and the
    visible part of the object's box, `box` float32 `[B, V, P, 4]`, in units of the view's side."""

    shape: Tensor
    color: Tensor
    box: Tensor


def boxes_of(packed: Packed) -> Tensor:
    """Boxes of packed scenes (see `renderer.pack`), float32 `[B, K, 4]`; empty where there is no object."""
    extents = constant(_EXTENTS, packed["place"].device)
    place = packed["place"].float()
    half = extents[packed["shape"].long()] * place[..., 2:] / 2
    return torch.cat((place[..., :2] - half, place[..., :2] + half), dim=-1)


def color_numbers(packed: Packed) -> Tensor:
    """Index into COLORS of each object, int64 `[B, K]`: the nearest."""
    palette = constant(_PALETTE, packed["color"].device)
    return (packed["color"].float()[:, :, None] - palette).square().sum(-1).argmin(-1)


def label_patches(packed: Packed, views: Views) -> Labels:
    """What each patch of each view shows: the object whose box covers most of it."""
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
    return Labels(torch.where(best.values > _MIN_COVERAGE, shape, NOTHING), color, box)


TOWERS: dict[str, tuple[SiglipConfig, Views]] = {
    "janus": (janus_tower(), Views(SIDE, janus_tower().image_size, janus_tower().patch_size, 0)),
    "vl2": (vl2_tower(), Views(SIDE, vl2_tower().image_size, vl2_tower().patch_size, TILES)),
}


class PatchLabeller(nn.Module):
    """A vision tower with linear heads per patch: shape or nothing, color, box."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.vision = build_siglip(config)
        self.sizes = (NOTHING + 1, len(COLORS), 4)
        self.head = nn.Linear(config.width, sum(self.sizes))

    def forward(self, pixels_N3SS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape, color, box = self.head(self.vision(pixels_N3SS)).float().split(self.sizes, dim=-1)
        return shape, color, box


def vision_losses(labeller: PatchLabeller, packed: Packed, pixels: Tensor, views: Views) -> dict[str, Tensor]:
    """Losses of shape, color and box, and `wrong`, the share of patches with an object whose shape or color
    is missed. Patches are weighted, not selected: every tensor has a fixed shape."""
    labels = label_patches(packed, views)
    shape, color, box = (part.flatten(0, 1) for part in labeller(views.cut(pixels).flatten(0, 1)))
    true_shape, true_color, true_box = (
        labels.shape.flatten(),
        labels.color.flatten(),
        labels.box.flatten(0, 2),
    )
    occupied = (true_shape != NOTHING).float()
    share = occupied / occupied.sum()
    missed = (shape.argmax(-1) != true_shape) | (color.argmax(-1) != true_color)
    return {
        "shape": F.cross_entropy(shape, true_shape),
        "color": (F.cross_entropy(color, true_color, reduction="none") * share).sum(),
        "box": (F.smooth_l1_loss(box, true_box, beta=0.02, reduction="none").sum(-1) * share).sum(),
        "wrong": (missed * share).sum().detach(),
    }


class VisionObjective(Objective):
    """A vision encoder of `TOWERS` with new weights, and pictures of a pool of scenes, drawn anew with small
    changes of place and size."""

    def __init__(
        self,
        tower: str,
        pool: ScenePool,
        batch: int,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__()
        self.loss_weights = {"color": 0.5, "box": 4.0}
        self.pool, self.batch, self.dtype = pool, batch, dtype
        config, self.views = TOWERS[tower]
        self.labeller = PatchLabeller(config)
        initialize(self.labeller, config.layers)
        self.labeller.to(pool.device)

    def compiled(self) -> Iterable[nn.Module]:
        return self.labeller.vision.blocks

    def losses(self) -> dict[str, Tensor]:
        packed = self.pool.draw(self.batch)
        pixels = draw_pixels(packed)
        enabled = self.dtype != torch.float32
        with torch.autocast(pixels.device.type, self.dtype, enabled=enabled, cache_enabled=False):
            return vision_losses(self.labeller, packed, pixels, self.views)
