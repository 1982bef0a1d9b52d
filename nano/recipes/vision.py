"""A vision encoder learns the world of things before the language model.

Every patch learns by linear heads, which are thrown away afterwards, what it shows: the thing or sign that is
visible in most of it, its color and its box, and the letter of a sign. So the language model starts from
features that hold the answers; else it would have to learn them through the few words of the answers.

N pictures, B of them drawn, V views of a picture (Janus: the picture; DeepSeek-VL2: the whole, then local
tiles row by row), S side of a view in pixels, P patches of a view (row by row), K slots; 4 is x0, y0, x1, y1.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from string import ascii_letters, digits

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...blocks.model.siglip import SiglipConfig, build_siglip
from ...janus.image_transform import ImageTransform
from ...learn.packed import Arrays, build
from ...learn.pretraining import Objective
from ...learn.scratch import initialize
from ...vl2.tiles import Size, place_in
from ..world.catalog import PAINTS, things
from ..world.degrading import degrade
from ..world.painting import Picture
from ..world.pictures import sample_view
from ..world.requests import MAX_THINGS
from ..world.scene import Box
from .janus_spec import tower_config as janus_tower
from .parts import TOWER, Job, Made, write_weights

SIGN, NOTHING = len(things()), len(things()) + 1
"""The classes of patches that show a sign, and that show nothing."""
SIGN_SLOT, NO_SLOT, SLOTS = MAX_THINGS, MAX_THINGS + 1, MAX_THINGS + 2
"""The slots of a picture are its things, then these two."""
LETTERS = ascii_letters + digits
NO_LETTER = len(LETTERS)

SHARD = 200
"""Pictures of one task of a rendering process."""

_SQUARE = 0.6  # share of Janus's pictures of the size that it paints
_MIN_SHARE = 0.1  # of a patch, from which on it shows a thing, a sign or a letter
_DEGRADED = 0.15  # share of pictures
_SOFT = ("blurred", "jpeg", "scaled")


def soften(picture: Picture, rng: Random) -> Picture:
    """The picture, a share of all blurred, compressed or scaled as painted pictures may be."""
    if rng.random() >= _DEGRADED:
        return picture
    return replace(picture, pixels_HW3=degrade(picture, rng.choice(_SOFT), rng)[0])


def frames_in(size: Size, canvas: Size, tile: int) -> list[Box]:
    """The parts of a picture, in its pixels, that the tiles of a canvas show into which it was fitted by
    `tiles.pad_to`; beyond the picture where that padded it."""
    (left, top), (width, height) = place_in(size, canvas)
    wide, high = size[0] / width, size[1] / height
    return [
        ((x - left) * wide, (y - top) * high, (x + tile - left) * wide, (y + tile - top) * high)
        for y in range(0, canvas[1], tile)
        for x in range(0, canvas[0], tile)
    ]


def _frame_of(size: Size, transform: ImageTransform) -> Box:
    """The same of `ImageTransform.fit`."""
    width, height = (max(int(side / max(size) * transform.size), transform.min_size) for side in size)
    left, top = (transform.size - width) // 2, (transform.size - height) // 2
    wide, high = size[0] / width, size[1] / height
    return -left * wide, -top * high, (transform.size - left) * wide, (transform.size - top) * high


def janus_shard(seed: int) -> Arrays:
    """SHARD pictures of any shape as Janus reads them: `tiles` uint8 [N, 1, 3, S, S] and `label_patches`."""
    rng, tower, found = Random(seed), janus_tower(), []
    side = tower.image_size
    for _ in range(SHARD):
        view = sample_view(rng, size=(side, side) if rng.random() < _SQUARE else None)
        fitted = ImageTransform(side).fit(soften(view.picture, rng).image())
        frame = _frame_of(fitted.size, ImageTransform(side))
        labels = label_patches(view.picture, [frame], side // tower.patch_size)
        found.append({"tiles": fitted.tiles, **labels})
    return {name: np.stack([one[name] for one in found]) for name in found[0]}


def _edges(low: float, high: float, patches: int) -> np.ndarray:
    return low + (high - low) * np.arange(patches + 1) / patches


def _shares(boxes: Sequence[Box], frame: Box, patches: int) -> np.ndarray:
    """The share of each patch of a view that each box covers: [boxes, patches, patches]."""
    spans = []
    for axis in (1, 0):
        edges = _edges(frame[axis], frame[axis + 2], patches)
        low, high = (np.array([box[i] for box in boxes])[:, None] for i in (axis, axis + 2))
        spans.append(np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0, None))
    area = (frame[2] - frame[0]) * (frame[3] - frame[1]) / patches**2
    return spans[0][:, :, None] * spans[1][:, None] / area


def _owned(sums_KHW: np.ndarray, frame: Box, patches: int) -> np.ndarray:
    """The share of each patch in which each thing is visible, by sums of the things' pixels over all rows
    above and columns before: [K, patches, patches]."""
    height, width = sums_KHW.shape[1] - 1, sums_KHW.shape[2] - 1
    x = np.clip(np.rint(_edges(frame[0], frame[2], patches)), 0, width).astype(int)
    y = np.clip(np.rint(_edges(frame[1], frame[3], patches)), 0, height).astype(int)
    counts = np.diff(np.diff(sums_KHW[:, y][:, :, x], axis=1), axis=2)
    return counts * patches**2 / ((frame[2] - frame[0]) * (frame[3] - frame[1]))


def label_patches(picture: Picture, frames: Sequence[Box], patches: int) -> Arrays:
    """What the patches of some views of a picture show, given the part of it (in pixels) that each shows.

    `slot` uint8 [V, P]: the thing's number in `picture.seen`, SIGN_SLOT or NO_SLOT; `letter` uint8 [V, P], an
    index into LETTERS or NO_LETTER; by slot, `kind` uint8 [K] (a thing's index, SIGN or NOTHING), `color`
    uint8 [K], and `box` float16 [V, K, 4], the part in the view, in units of its side.
    """
    views, names, paints = len(frames), list(things()), list(PAINTS)
    found: Arrays = {
        "slot": np.full((views, patches**2), NO_SLOT, np.uint8),
        "letter": np.full((views, patches**2), NO_LETTER, np.uint8),
        "kind": np.full(SLOTS, NOTHING, np.uint8),
        "color": np.zeros(SLOTS, np.uint8),
        "box": np.zeros((views, SLOTS, 4), np.float16),
    }
    boxes = dict(enumerate(one.box for one in picture.seen))
    for number, one in enumerate(picture.seen):
        found["kind"][number], found["color"][number] = names.index(one.thing), paints.index(one.color)
    if sign := picture.sign:
        boxes[SIGN_SLOT], found["kind"][SIGN_SLOT] = sign.box, SIGN
    owned_KHW = picture.owner_HW == np.arange(len(picture.seen))[:, None, None]
    sums_KHW = np.pad(owned_KHW, ((0, 0), (1, 0), (1, 0))).cumsum(1, dtype=np.int32).cumsum(2, dtype=np.int32)
    for view, frame in enumerate(frames):
        start, span = np.array(frame[:2] * 2), np.tile(np.subtract(frame[2:], frame[:2]), 2)
        for number, box in boxes.items():
            found["box"][view, number] = np.clip((np.array(box) - start) / span, 0, 1)
        shares = _owned(sums_KHW, frame, patches)
        if sign:
            shares = np.concatenate((shares, _shares([sign.box], frame, patches)))
            letters = _shares([box for _, box in sign.letters], frame, patches).reshape(-1, patches**2)
            index = np.array([LETTERS.index(letter) for letter, _ in sign.letters])[letters.argmax(0)]
            found["letter"][view] = np.where(letters.max(0) > _MIN_SHARE, index, NO_LETTER)
        shares = shares.reshape(-1, patches**2)
        slots = np.array(list(boxes))[shares.argmax(0)]
        found["slot"][view] = np.where(shares.max(0) > _MIN_SHARE, slots, NO_SLOT)
    return found


LABELS = (NOTHING + 1, len(PAINTS), NO_LETTER + 1, 4)
"""Numbers that are predicted of a patch: what it shows, color, letter, box."""


class PatchLabeller(nn.Module):
    """A vision encoder with linear heads per patch."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.vision = build_siglip(config)
        self.head = nn.Linear(config.width, sum(LABELS))

    def forward(self, pixels_BV3SS: Tensor) -> tuple[Tensor, ...]:
        """What LABELS says, each float32 `[B, V, P, ...]`."""
        found = self.head(self.vision(pixels_BV3SS.flatten(0, 1))).float()
        return found.unflatten(0, pixels_BV3SS.shape[:2]).split(LABELS, dim=-1)


def patch_losses(predicted: Sequence[Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weighted losses of what is shown, colors, boxes and letters; `wrong`, the share of patches of things of
    which thing or color is missed, and `misread`, that of letters. Patches are weighted, not selected: every
    tensor has a fixed shape. predicted: those of `PatchLabeller`."""
    kind, color, letter, box = predicted
    slot_BVP = batch["slot"].long()
    pick_BN = slot_BVP.flatten(1)
    true_kind, true_color = (
        batch[name].long().gather(1, pick_BN).view_as(slot_BVP) for name in ("kind", "color")
    )
    true_box = batch["box"].float().gather(2, slot_BVP[..., None].expand(-1, -1, -1, 4))
    true_letter = batch["letter"].long()

    def share(chosen: Tensor) -> Tensor:
        return chosen.float() / chosen.sum().clamp(min=1)

    def entropy(logits: Tensor, truth: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 2), truth.flatten(), reduction="none").view_as(truth)

    of_thing, shown = (share(slot_BVP < slot) for slot in (SIGN_SLOT, NO_SLOT))
    signed = share(slot_BVP == SIGN_SLOT)
    distance = F.smooth_l1_loss(box, true_box, beta=0.02, reduction="none").sum(-1)
    missed = (kind.argmax(-1) != true_kind) | (color.argmax(-1) != true_color)
    written = share(true_letter != NO_LETTER)
    return {
        "kind": entropy(kind, true_kind).mean(),
        "color": 0.5 * (entropy(color, true_color) * of_thing).sum(),
        "box": 4 * (distance * shown).sum(),
        "letter": 0.5 * (entropy(letter, true_letter) * signed).sum(),
        "wrong": (missed * of_thing).sum().detach(),
        "misread": ((letter.argmax(-1) != true_letter) * written).sum().detach(),
    }


def normalize(tiles_uint8: Tensor) -> Tensor:
    """Pixels in 0..255 to -1..1, as the processors do."""
    return tiles_uint8.float().div(255).sub(0.5).div(0.5)


class VisionObjective(Objective):
    """A vision encoder with new weights. `draw` gives pictures: `tiles` uint8 [B, V, 3, S, S] with the labels
    of `label_patches`. `refresh` is called before each step."""

    def __init__(
        self,
        config: SiglipConfig,
        draw: Callable[[], Mapping[str, Tensor]],
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
        refresh: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.draw, self.refresh, self.dtype = draw, refresh, dtype
        self.labeller = PatchLabeller(config)
        initialize(self.labeller, config.layers)
        self.labeller.to(device)

    def compiled(self) -> Iterable[nn.Module]:
        return self.labeller.vision.blocks

    def begin_step(self, progress: float) -> bool:
        self.refresh()
        return False

    def losses(self) -> dict[str, Tensor]:
        batch = self.draw()
        device, enabled = batch["tiles"].device, self.dtype != torch.float32
        with torch.autocast(device.type, self.dtype, enabled=enabled, cache_enabled=False):
            return patch_losses(self.labeller(normalize(batch["tiles"])), batch)


def write_tower(objective: VisionObjective, folder: Path) -> None:
    """Write the encoder."""
    write_weights(objective.labeller.vision, folder / TOWER, torch.float32)


def make_janus_vision(job: Job) -> Made:
    """Janus's vision encoder, from `job.examples` pictures."""
    arrays = build(janus_shard, -(-job.examples[0] // SHARD), job.seed * 1_000_003, job.workers)
    pool = {name: torch.from_numpy(array).to(job.device) for name, array in arrays.items()}

    def draw() -> dict[str, Tensor]:
        chosen = torch.randint(len(pool["tiles"]), (job.rows[0],), device=job.device)
        return {name: tensor[chosen] for name, tensor in pool.items()}

    objective = VisionObjective(janus_tower(), draw, job.device)
    return objective, lambda: write_tower(objective, job.folder)
