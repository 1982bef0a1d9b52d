"""Recipe: train `vl2-nano` on a pretrained vision tower. `python -m bifrons.nano.recipes.vl2 --help`.

Shape suffixes: P images, V views (tiles) of an image, T tokens of an image, H height or tokens along a side
of a tile, W width, D decoder width, N tokens of a batch, E experts, K experts per token; 3 is red, green,
blue, 4 is x0, y0, x1, y1.
"""

import argparse
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...blocks.kernels.moe_dispatch import dense_experts
from ...blocks.model.moe import Gate, MoE
from ...vl2.config import read_config
from ...vl2.model import VL2Model
from ...vl2.pipeline import VL2Pipeline
from ...vl2.weight_names import keep_float32, official_tensors
from ..world.renderer import render_packed
from .datasets import Examples, answer_loss, insert_image_tokens, load_examples
from .janus_data import EXAMPLES
from .janus_spec import SIDE
from .trainer import RunConfig, Trainer, initialize
from .training_state import constant
from .vision import TOWER, TOWERS
from .vl2_spec import ConversationEncoder
from .vq import OFF_LATTICE, jitter, to_pixels

ONE_ROWS, TWO_ROWS = 112, 48
"""Rows of a batch with one image and with two."""
FRAME = (1.0, -1.0, -1.0)
"""Color of the frame around an example object, RGB in -1..1."""
FRAME_PIXELS = 2
"""Width of the frame."""


def arrange_image_tokens(model: VL2Model, tiles_PVHHD: Tensor, grid: int) -> Tensor:
    """`VL2Model.arrange` for a batch of images with a `grid` x `grid` of local tiles: `[P, T, D]`."""
    local = rearrange(tiles_PVHHD[:, 1:], "p (r c) h w d -> p (r h) (c w) d", r=grid, c=grid)

    def rows(x: Tensor) -> Tensor:
        newline = model.image_newline.to(x.dtype).expand(*x.shape[:2], 1, -1)
        return torch.cat((x, newline), dim=2).flatten(1, 2)

    separator = model.view_seperator.to(local.dtype).expand(len(local), 1, -1)
    return torch.cat((rows(tiles_PVHHD[:, 0]), separator, rows(local)), dim=1)


def draw_frames(pixels_P3HW: Tensor, frames_P4: Tensor) -> Tensor:
    """Draw one frame on each square image in -1..1, as `draw_boxes` does.

    Frames are x0, y0, x1, y1 in 0..1; all zeros draws none.
    """
    corners = (frames_P4 * pixels_P3HW.shape[-1]).floor()[:, :, None]
    positions = torch.arange(pixels_P3HW.shape[-1], device=pixels_P3HW.device)

    def inside(axis: int, margin: int) -> Tensor:
        return (positions >= corners[:, axis] + margin) & (positions <= corners[:, axis + 2] - margin)

    outer = inside(1, 0)[:, :, None] & inside(0, 0)[:, None]
    inner = inside(1, FRAME_PIXELS)[:, :, None] & inside(0, FRAME_PIXELS)[:, None]
    framed = (frames_P4[:, 2] > 0)[:, None, None]
    color = constant(FRAME, pixels_P3HW.device)[:, None, None]
    return torch.where((outer & ~inner & framed)[:, None], color, pixels_P3HW)


class LoadBalancingLoss:
    """Auxiliary loss of the MoE gates, collected by forward hooks.

    The loss of a layer is E times the sum over its experts of the share of tokens routed to the expert times
    its mean score (Fedus et al. 2021, "Switch Transformers", eq. 4): 1 for perfect balance.
    """

    def __init__(self, model: VL2Model) -> None:
        self.losses: list[Tensor] = []
        self.gates = [module for module in model.modules() if isinstance(module, Gate)]
        for gate in self.gates:
            gate.register_forward_hook(self._collect)

    def _collect(self, gate: Gate, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        scores_NE, experts_NK = gate.scores(inputs[0]), output[0]
        load_E = F.one_hot(experts_NK, scores_NE.shape[1]).float().mean((0, 1))
        self.losses.append(scores_NE.shape[1] * (load_E * scores_NE.mean(0)).sum())

    def take(self) -> Tensor:
        """The mean loss of the layers run since the last call."""
        loss = torch.stack(self.losses).mean()
        self.losses.clear()
        return loss


class VL2Trainer(Trainer[VL2Model]):
    """Trains on conversations about one and about two images in one batch."""

    name = "vl2"
    loss_weights: ClassVar[dict[str, float]] = {"two": 0.5, "balance": 0.02}
    peak_lr = 3e-3

    def __init__(
        self, run: RunConfig, start: Path | None = None, rows: tuple[int, int] = (ONE_ROWS, TWO_ROWS)
    ) -> None:
        super().__init__(run)
        self.rows = rows
        self.offsets = ConversationEncoder(run.folder).offsets
        self.views = TOWERS["vl2"][1]
        self.one = load_examples(run.folder / EXAMPLES, "one").to(run.device)
        self.two = load_examples(run.folder / EXAMPLES, "two").to(run.device)
        self.log(f"{len(self.one)} and {len(self.two)} conversations about one and two images loaded")
        model = new_model(run.folder, start)
        for module in model.modules():
            if isinstance(module, MoE):
                module.experts.implementation = dense_experts
        model = model.to(run.device)
        self.setup(model)
        self.balance = LoadBalancingLoss(model)

    def render(self, scenes: dict[str, Tensor]) -> Tensor:
        """Images of packed scenes in -1..1, some of them jittered."""
        return to_pixels(render_packed(jitter(scenes, OFF_LATTICE), SIDE, self.device))

    def losses(self) -> dict[str, Tensor]:
        model = self.model
        one = self.one.take(torch.randint(len(self.one), (self.rows[0],), device=self.device))
        two = self.two.take(torch.randint(len(self.two), (self.rows[1],), device=self.device))
        pixels = (self.render(one.scenes), *self._render_pair(two))
        with torch.autocast(self.device, torch.bfloat16, cache_enabled=False):
            views = self.views.cut(torch.cat(pixels))
            tiles = model.embed_tiles(views.flatten(0, 1)).unflatten(0, views.shape[:2])
            images = arrange_image_tokens(model, tiles, self.views.grid)
            single, first, second = images.split([len(part) for part in pixels])
            x_one = insert_image_tokens(model.embed_text(one.ids.long()).bfloat16(), single, self.offsets[0])
            x_two = insert_image_tokens(model.embed_text(two.ids.long()).bfloat16(), first, self.offsets[0])
            x_two = insert_image_tokens(x_two, second, self.offsets[1])
            padding = x_two.shape[1] - x_one.shape[1]
            hidden = model.decoder(torch.cat((F.pad(x_one, (0, 0, 0, padding)), x_two)))
            return {
                "one": answer_loss(model.text_logits, hidden[: len(x_one)], one),
                "two": answer_loss(model.text_logits, hidden[len(x_one) :], two),
                "balance": self.balance.take(),
            }

    def _render_pair(self, batch: Examples) -> tuple[Tensor, Tensor]:
        """The first images, some of them framed, and the second images of conversations about two."""
        scenes: dict[str, Any] = batch.scenes
        second = {name: scenes[f"second.{name}"] for name in ("shape", "color", "background")}
        second |= {"place": scenes["second.place"].float(), "aspect": scenes["aspect"]}
        # Not jittered, since the frames are fitted to the objects.
        pixels = to_pixels(render_packed(scenes, SIDE, self.device))
        return draw_frames(pixels, scenes["frame"].float()), self.render(second)

    def export(self) -> None:
        """Write the averaged weights under their official names."""
        weights = {
            name: part.to(torch.float32 if keep_float32(name) else torch.bfloat16).contiguous().clone()
            for model_name, tensor in self.average.model.state_dict().items()
            for name, part in official_tensors(model_name, tensor)
        }
        save_file(weights, self.folder / "model.safetensors", {"format": "pt"})


def new_model(folder: Path, start: Path | None = None) -> VL2Model:
    """A model with the weights of the folder `start`, or new ones and the vision tower of `folder`."""
    model = VL2Model(read_config(folder))
    if start is not None:
        model.load_state_dict(VL2Pipeline.from_pretrained(start, "cpu", "float32").model.state_dict())
        return model
    initialize(model, model.config.decoder.num_layers)
    model.vision.load_state_dict(load_file(folder / TOWER))
    return model


def main() -> None:
    """Command line: train vl2-nano."""
    parser = argparse.ArgumentParser(description="Train vl2-nano on the synthetic world.")
    RunConfig.add_arguments(parser, "runs/vl2-nano", 400)
    parser.add_argument("--start", type=Path, help="a vl2-nano folder with initial weights")
    parser.add_argument("--rows", type=int, nargs=2, default=(ONE_ROWS, TWO_ROWS), metavar=("ONE", "TWO"))
    args = parser.parse_args()
    VL2Trainer(RunConfig.from_args(args), args.start, tuple(args.rows)).run()


if __name__ == "__main__":
    main()
