"""Recipe: teach a vision tower to see the small world, before a language model learns to speak of it.

`python -m bifrons.nano.recipes.vision --help`. Every patch learns to name the thing that covers it, its
colour and its box, by linear heads that are thrown away afterwards. So the language model starts from
features that hold the answers; else it would have to find them through the few words of the answers.
"""

import argparse
from typing import ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ...blocks.model.siglip import SiglipConfig, build_siglip
from ..world.renderer import pack, render_packed
from ..world.scene import COLORS
from .janus_spec import SIDE
from .janus_spec import tower_config as janus_tower
from .trainer import Run, Trainer, initialise
from .vision_labels import NOTHING, Views, label_patches
from .vl2_spec import TILES, tower_config
from .vq import OFF_LATTICE, jitter, sample_scenes, to_pixels

TOWERS: dict[str, tuple[SiglipConfig, Views]] = {
    "janus": (janus_tower(), Views(SIDE, janus_tower().image_size, janus_tower().patch_size, 0)),
    "vl2": (tower_config(), Views(SIDE, tower_config().image_size, tower_config().patch_size, TILES)),
}
TOWER = "vision.safetensors"
BATCH = 256
"""Pictures a step."""


class Seer(nn.Module):
    """A tower with the heads that teach it: shape or nothing, colour, box."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.vision = build_siglip(config)
        self.sizes = (NOTHING + 1, len(COLORS), 4)
        self.head = nn.Linear(config.width, sum(self.sizes))

    def forward(self, pixels_N3SS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape, color, box = self.head(self.vision(pixels_N3SS)).float().split(self.sizes, dim=-1)
        return shape, color, box


def vision_losses(seer: Seer, packed: dict[str, Tensor], pixels: Tensor, views: Views) -> dict[str, Tensor]:
    """Losses of shape, colour and box, and `wrong`, the share of patches with a thing that miss its shape or
    colour. Patches are weighted, not selected: every tensor has a fixed shape."""
    labels = label_patches(packed, views)
    shape, color, box = (part.flatten(0, 1) for part in seer(views.cut(pixels).flatten(0, 1)))
    wanted, tint, place = labels.shape.flatten(), labels.color.flatten(), labels.box.flatten(0, 2)
    some = (wanted != NOTHING).float()
    share = some / some.sum()
    missed = (shape.argmax(-1) != wanted) | (color.argmax(-1) != tint)
    return {
        "shape": F.cross_entropy(shape, wanted),
        "color": (F.cross_entropy(color, tint, reduction="none") * share).sum(),
        "box": (F.smooth_l1_loss(box, place, beta=0.02, reduction="none").sum(-1) * share).sum(),
        "wrong": (missed * share).sum().detach(),
    }


class SeerTrainer(Trainer[Seer]):
    """Pictures of a pool of scenes, rendered anew with small changes of place, size."""

    name = "vision"
    weights: ClassVar[dict[str, float]] = {"color": 0.5, "box": 4.0}
    peak_rate = 3e-3

    def __init__(self, run: Run, tower: str, scenes: int, batch: int) -> None:
        super().__init__(run)
        config, self.views = TOWERS[tower]
        self.batch = batch
        pool = pack(sample_scenes(run.seed, scenes))
        self.pool = {k: v if v.ndim == 0 else v.to(run.device) for k, v in pool.items()}
        self.say(f"{scenes} scenes")
        seer = Seer(config).to(run.device)
        initialise(seer, config.layers)
        self.learn(seer, compiled=seer.vision.blocks)

    def losses(self) -> dict[str, Tensor]:
        chosen = torch.randint(len(self.pool["shape"]), (self.batch,), device=self.device)
        packed = jitter({k: v if v.ndim == 0 else v[chosen] for k, v in self.pool.items()}, OFF_LATTICE)
        pixels = to_pixels(render_packed(packed, self.views.picture, self.device))
        with torch.autocast(self.device, torch.bfloat16, cache_enabled=False):
            return vision_losses(self.model, packed, pixels, self.views)

    def export(self) -> None:
        weights = {k: v.contiguous() for k, v in self.average.model.vision.state_dict().items()}
        save_file(weights, self.folder / TOWER, {"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach a small vision tower the small world.")
    parser.add_argument("tower", choices=sorted(TOWERS))
    Run.add_arguments(parser, "runs/vision", 60)
    parser.add_argument("--scenes", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=BATCH, help="pictures a step")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    SeerTrainer(Run.of(args), args.tower, args.scenes, args.batch).run()


if __name__ == "__main__":
    main()
