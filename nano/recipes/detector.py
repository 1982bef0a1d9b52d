"""The detector of the world of things learns from rendered scenes, a part of them degraded.

`python -m bifrons.nano.recipes.train detector` trains it. Pictures are rendered once, by all
processors, and stay in the device's memory (110 kB each); brightness, contrast and noise change at every
step.

B images, N slots for things, H and W points of the network's maps, 3 x 3 points (9) around a
center; M points of a picture, K classes, colors or sides; 3 is red, green, blue; 4 is x0, y0, x1, y1.
"""

from collections.abc import Iterable
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...learn.packed import Arrays
from ...learn.pretraining import Objective
from ..world.catalog import PAINTS, things
from ..world.degrading import DEGRADATIONS, degrade
from ..world.sampling import KINDS, MORE_KINDS, sample_example
from ..world.things_detector import SIDE, STRIDE, CenterNet, Maps, boxes_at, save_detector
from .parts import Job, Made
from .pictures import SHARD, PicturePool, truth_arrays

WIDTH = 48
"""Channels at a stride of four pixels."""

_PLAIN = 0.4  # share of pictures that are not degraded


def shard(seed: int) -> Arrays:
    """SHARD pictures, `pixels` uint8 [N, SIDE, SIDE, 3], with their truth; see `truth_arrays`."""
    rng, kinds = Random(seed), (*KINDS, *MORE_KINDS)
    pixels, truths = np.zeros((SHARD, SIDE, SIDE, 3), np.uint8), []
    for i in range(SHARD):
        picture = sample_example(rng.choice(kinds), rng, "any", SIDE, SIDE).picture
        how = "none" if rng.random() < _PLAIN else rng.choice(DEGRADATIONS)
        pixels[i], seen = degrade(picture, how, rng)
        truths.append(seen)
    return {"pixels": pixels, **truth_arrays(truths)}


def heat_targets(batch: dict[str, Tensor], height: int, width: int) -> Tensor:
    """Each thing's Gaussian around the point of its center, where it is 1: [B, H, W]."""
    box_BN4 = batch["box"] / STRIDE
    center_BN2 = ((box_BN4[..., :2] + box_BN4[..., 2:]) / 2).floor()
    sigma_BN2 = 0.5 + 0.08 * (box_BN4[..., 2:] - box_BN4[..., :2])
    x_W, y_H = (torch.arange(size, device=box_BN4.device) for size in (width, height))
    x_BNW = ((x_W - center_BN2[..., :1]) / sigma_BN2[..., :1]).square()
    y_BNH = ((y_H - center_BN2[..., 1:]) / sigma_BN2[..., 1:]).square()
    heat_BNHW = torch.exp(-0.5 * (x_BNW[..., None, :] + y_BNH[..., None]))
    return (heat_BNHW * batch["there"][..., None, None]).amax(1)


def focal_loss(logits: Tensor, target: Tensor, count: Tensor) -> Tensor:
    """CenterNet's focal loss: what is near a center counts less as a mistake."""
    hit = (target > 0.999).float()
    missed = F.logsigmoid(logits) * torch.sigmoid(-logits).square() * hit
    wrong = F.logsigmoid(-logits) * torch.sigmoid(logits).square() * (1 - target).pow(4) * (1 - hit)
    return -(missed.sum() + wrong.sum()) / count


def _area(low: Tensor, high: Tensor) -> Tensor:
    """Of boxes between two corners `[..., 2]`; nothing where they are in the other order. Without `prod`,
    whose gradient waits for the device."""
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height


def box_loss(a: Tensor, b: Tensor) -> Tensor:
    """1 less the generalized IoU of boxes `[..., 4]` (Rezatofighi et al. 2019, arXiv:1902.09630, algorithm
    1), without torchvision's selection, whose shapes depend on the data."""
    (low_a, high_a), (low_b, high_b) = (box.split(2, dim=-1) for box in (a, b))
    shared = _area(torch.maximum(low_a, low_b), torch.minimum(high_a, high_b))
    union = _area(low_a, high_a) + _area(low_b, high_b) - shared
    around = _area(torch.minimum(low_a, low_b), torch.maximum(high_a, high_b))
    return 1 - shared / (union + 1e-6) + (around - union) / (around + 1e-6)


def _at(maps_BKHW: Tensor, points_BN9: Tensor) -> Tensor:
    """Values [B, N, 9, K] of maps at points, which are counted row by row."""
    maps_BMK, count = maps_BKHW.flatten(2).transpose(1, 2), maps_BKHW.shape[1]
    index_BMK = points_BN9.flatten(1)[..., None].expand(-1, -1, count)
    return maps_BMK.gather(1, index_BMK).unflatten(1, points_BN9.shape[1:])


def detector_losses(maps: Maps, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses of the heatmap, and of boxes, classes and colors at the nine points around each center; and the
    shares of things whose class or color is missed. Things are weighted, not selected: every tensor has a
    fixed shape."""
    height, width = maps.heat.shape[1:]
    there_BN = batch["there"]
    count = there_BN.sum().clamp(min=1)
    near_9 = torch.arange(9, device=there_BN.device)
    center_BN2 = ((batch["box"][..., :2] + batch["box"][..., 2:]) / 2 / STRIDE).floor().long()
    rows_BN9 = (center_BN2[..., 1:] + near_9 // 3 - 1).clamp(0, height - 1)
    columns_BN9 = (center_BN2[..., :1] + near_9 % 3 - 1).clamp(0, width - 1)
    points_BN9 = rows_BN9 * width + columns_BN9
    weight_BN9 = (there_BN[..., None] / 9 / count).expand(*there_BN.shape, 9)
    boxes_BN94 = boxes_at(_at(maps.sides, points_BN9), rows_BN9, columns_BN9)
    wanted_BN94 = batch["box"][:, :, None].expand_as(boxes_BN94)
    box_BN9 = box_loss(boxes_BN94, wanted_BN94)
    losses = {
        "heat": focal_loss(maps.heat, heat_targets(batch, height, width), count),
        "box": (box_BN9 * weight_BN9).sum(),
    }
    for name, logits in (("thing", maps.thing), ("color", maps.color)):
        logits_BN9K = _at(logits, points_BN9)
        truth_BN9 = batch[name][..., None].expand_as(weight_BN9)
        wrong = F.cross_entropy(logits_BN9K.flatten(0, 2), truth_BN9.flatten(), reduction="none")
        losses[name] = (wrong * weight_BN9.flatten()).sum()
        losses[f"wrong {name}"] = ((logits_BN9K.argmax(-1) != truth_BN9) * weight_BN9).sum().detach()
    return losses


def augment(pixels_B3HW: Tensor) -> Tensor:
    """Pictures in -1..1 with another brightness, contrast and noise, at random."""
    size = (len(pixels_B3HW), 1, 1, 1)
    gain, shift, noise = (torch.rand(size, device=pixels_B3HW.device) for _ in range(3))
    pixels = pixels_B3HW * (0.9 + 0.2 * gain) + 0.12 * (shift - 0.5)
    return (pixels + 0.08 * noise.square() * torch.randn_like(pixels)).clamp(-1, 1)


class DetectorObjective(Objective):
    """The detector with new weights, and a pool of pictures on the same device."""

    def __init__(self, pool: PicturePool, batch: int, device: torch.device, width: int = WIDTH) -> None:
        super().__init__()
        self.loss_weights, self.pool, self.batch = {"box": 2.0}, pool, batch
        self.model = CenterNet(len(things()), len(PAINTS), width).to(device)
        # PyTorch's backward pass through channels-last copies has crashed on CPUs.
        self.layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.model.to(memory_format=self.layout)  # pyright: ignore[reportCallIssue]

    def compiled(self) -> Iterable[nn.Module]:
        return (self.model,)

    def losses(self) -> dict[str, Tensor]:
        batch = self.pool.draw(self.batch)
        place = batch["pixels"].device
        pixels = batch["pixels"].permute(0, 3, 1, 2).contiguous(memory_format=self.layout)
        pixels = augment(pixels.float() / 127.5 - 1)
        with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda", cache_enabled=False):
            maps = self.model(pixels)
        return detector_losses(maps, batch)


def make_detector(job: Job) -> Made:
    """The detector, from random pictures."""
    torch.backends.cudnn.benchmark = True
    pool = PicturePool.render(job.examples[0], job.seed, job.workers, job.device, shard)
    objective = DetectorObjective(pool, job.rows[0], job.device)
    return objective, lambda: save_detector(job.folder, objective.model, WIDTH, {})
