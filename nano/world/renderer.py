"""Batched rasterizer: renders scenes from signed distance fields with tensor operations, on any device.

Shape suffixes: B images, K object slots, H height, W width; 3 is red, green, blue.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...blocks.errors import OptionError
from .scene import COLORS, MAX_OBJECTS, TRAINING_OBJECTS, Scene
from .shapes import HALF_SPAN, SHAPES, TEXELS, distance_atlas

_SHAPE_INDEX = {name: i for i, name in enumerate(SHAPES)}


@lru_cache(maxsize=8)
def _atlas(device: str) -> Tensor:
    return torch.from_numpy(distance_atlas()).to(device)


def pack(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Scenes as a dict of tensors, for storage and for `render_packed`.

    Returns `shape` int8 [B, K] (index into SHAPES), `place` float32 [B, K, 3] (x, y, size; size
    0 marks an empty slot), `color` uint8 [B, K, 3], `background` uint8 [B, 3] and `aspect` float32 [], where
    K is TRAINING_OBJECTS, or MAX_OBJECTS if a scene has more.
    All but `aspect` can be indexed along B. Raises OptionError for an empty batch, mixed aspects, or a scene
    of more than MAX_OBJECTS objects.
    """
    if not scenes:
        raise OptionError("no scenes to pack; give at least one")
    if len({scene.aspect for scene in scenes}) > 1:
        raise OptionError("the scenes of one batch must share one aspect")
    count, most = len(scenes), max(len(scene.objects) for scene in scenes)
    slots = TRAINING_OBJECTS if most <= TRAINING_OBJECTS else MAX_OBJECTS
    shape = np.zeros((count, slots), dtype=np.int8)
    place = np.zeros((count, slots, 3), dtype=np.float32)
    color = np.zeros((count, slots, 3), dtype=np.uint8)
    for b, scene in enumerate(scenes):
        if len(scene.objects) > MAX_OBJECTS:
            raise OptionError(f"a scene holds at most {MAX_OBJECTS} objects, not {len(scene.objects)}")
        for k, obj in enumerate(scene.objects):
            shape[b, k] = _SHAPE_INDEX[obj.shape]
            place[b, k] = obj.x, obj.y, obj.size
            color[b, k] = COLORS[obj.color]
    return {
        "shape": torch.from_numpy(shape),
        "place": torch.from_numpy(place),
        "color": torch.from_numpy(color),
        "background": torch.tensor([scene.background for scene in scenes], dtype=torch.uint8),
        "aspect": torch.tensor(scenes[0].aspect, dtype=torch.float32),
    }


def pixel_size(size: int, aspect: float) -> tuple[int, int]:
    """(height, width) in pixels of an image whose shorter side is `size`."""
    if size < 1:
        raise OptionError(f"size must be at least 1 pixel, not {size}")
    if aspect >= 1:
        return size, round(size * aspect)
    return round(size / aspect), size


def _texture_axis(pixels: int, size: int, center_B: Tensor, scale_B: Tensor) -> Tensor:
    """Coordinates of the pixel centers of one axis in a shape's distance field, in texels: [B, pixels]."""
    centers = (torch.arange(pixels, device=center_B.device, dtype=torch.float32) + 0.5) / size
    local = (centers[None] - center_B[:, None]) / scale_B[:, None]
    # Coordinates outside the field clamp to its border texels, which are already more than half a pixel
    # outside the shape.
    return ((local / HALF_SPAN + 1) * (TEXELS / 2)).clamp(0.5, TEXELS - 0.5)


def coverage(shape_B: Tensor, place_B3: Tensor, height: int, width: int, size: int) -> Tensor:
    """Antialiased coverage mask of one shape per image: float32 [B, H, W] in [0, 1].

    `shape_B` holds indices into SHAPES, `place_B3` (x, y, size) in units of `size` pixels; size 0 covers
    nothing. Coverage is a linear ramp of the signed distance, one pixel wide and centered on the outline.
    """
    batch = len(shape_B)
    atlas = _atlas(str(place_B3.device))
    present_B = place_B3[:, 2] > 0
    scale_B = torch.where(present_B, place_B3[:, 2], 1.0)
    tx_BW = _texture_axis(width, size, place_B3[:, 0], scale_B)
    ty_BH = _texture_axis(height, size, place_B3[:, 1], scale_B) + shape_B.float()[:, None] * TEXELS
    grid_BHW2 = torch.stack(
        (
            (tx_BW * (2 / TEXELS) - 1)[:, None, :].expand(batch, height, width),
            (ty_BH * (2 / (len(SHAPES) * TEXELS)) - 1)[:, :, None].expand(batch, height, width),
        ),
        dim=-1,
    )
    field = F.grid_sample(
        atlas.expand(batch, 1, *atlas.shape), grid_BHW2, padding_mode="border", align_corners=False
    )
    coverage_BHW = (0.5 - field[:, 0] * (scale_B * size)[:, None, None]).clamp(0, 1)
    return coverage_BHW * present_B[:, None, None]


@torch.no_grad()
def render_packed(packed: dict[str, Tensor], size: int, device: str | torch.device) -> Tensor:
    """Render packed scenes (see `pack`): uint8 [B, 3, H, W] on `device`, the shorter side `size` pixels."""
    height, width = pixel_size(size, float(packed["aspect"]))
    shape_BK = packed["shape"].to(device).long()
    place_BK3 = packed["place"].to(device)
    color_BK3 = packed["color"].to(device).float()
    background_B3 = packed["background"].to(device).float()
    canvas_B3HW = background_B3[:, :, None, None].expand(-1, -1, height, width).contiguous()
    for k in range(shape_BK.shape[1]):
        alpha_BHW = coverage(shape_BK[:, k], place_BK3[:, k], height, width, size)
        canvas_B3HW += alpha_BHW[:, None] * (color_BK3[:, k, :, None, None] - canvas_B3HW)
    return (canvas_B3HW + 0.5).clamp_(0, 255).to(torch.uint8)


def render(scenes: Sequence[Scene], size: int = 128, device: str | torch.device = "cpu") -> Tensor:
    """Render scenes of one aspect: uint8 [B, 3, H, W] on `device`; `size` is the shorter side in pixels."""
    return render_packed(pack(scenes), size, device)


def to_pil(scene: Scene, size: int = 128) -> Image.Image:
    """Render one scene to a PIL image; `size` is the shorter side in pixels."""
    return Image.fromarray(render([scene], size)[0].permute(1, 2, 0).contiguous().numpy())
