"""Recipe: `vl2-nano`, on a tower that was taught beforehand. `python -m bifrons.nano.recipes.vl2 --help`.

B rows, P pictures, V views of a picture, T tokens of a picture, L tokens of a row, H tokens along a side of a
tile, D decoder width, N tokens of a batch, E experts, K experts a token.
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
from .datasets import Examples, answer_loss, load_examples
from .janus_data import EXAMPLES
from .janus_spec import SIDE
from .trainer import RunConfig, Trainer, initialise
from .training_state import constant
from .vision import TOWER, TOWERS
from .vl2_spec import ConversationEncoder
from .vq import OFF_LATTICE, jitter, to_pixels

ONE_ROWS, TWO_ROWS = 112, 48
FRAME = (1.0, -1.0, -1.0)
"""The red of a framed example, in -1..1."""
FRAME_PIXELS = 2


def arrange_image_tokens(model: VL2Model, tiles_PVHHD: Tensor, grid: int) -> Tensor:
    """`VL2Model.arrange` for many pictures of one square grid: `[P, T, D]`."""
    local = rearrange(tiles_PVHHD[:, 1:], "p (r c) h w d -> p (r h) (c w) d", r=grid, c=grid)

    def rows(x: Tensor) -> Tensor:
        newline = model.image_newline.to(x.dtype).expand(*x.shape[:2], 1, -1)
        return torch.cat((x, newline), dim=2).flatten(1, 2)

    separator = model.view_seperator.to(local.dtype).expand(len(local), 1, -1)
    return torch.cat((rows(tiles_PVHHD[:, 0]), separator, rows(local)), dim=1)


def draw_frames(pixels_P3HW: Tensor, frames_P4: Tensor) -> Tensor:
    """Pictures in -1..1 with the frames (x0, y0, x1, y1 in 0..1) that `draw_boxes` would draw on them."""
    corners = (frames_P4 * pixels_P3HW.shape[-1]).floor()[:, :, None]
    at = torch.arange(pixels_P3HW.shape[-1], device=pixels_P3HW.device)

    def inside(axis: int, margin: int) -> Tensor:
        return (at >= corners[:, axis] + margin) & (at <= corners[:, axis + 2] - margin)

    outer = inside(1, 0)[:, :, None] & inside(0, 0)[:, None]
    inner = inside(1, FRAME_PIXELS)[:, :, None] & inside(0, FRAME_PIXELS)[:, None]
    there = (frames_P4[:, 2] > 0)[:, None, None]
    red = constant(FRAME, pixels_P3HW.device)[:, None, None]
    return torch.where((outer & ~inner & there)[:, None], red, pixels_P3HW)


def insert_image_tokens(x_BLD: Tensor, pictures_BTD: Tensor, at: int) -> Tensor:
    """Embeddings in which the tokens of each row's picture stand from position `at` on."""
    return torch.cat((x_BLD[:, :at], pictures_BTD, x_BLD[:, at + pictures_BTD.shape[1] :]), dim=1)


class LoadBalancingLoss:
    """Watches the gates of a model, and says how unevenly they use their experts.

    The loss of a layer is E times the sum, over its experts, of the share of the choices times the mean score
    (Fedus et al. 2021, "Switch Transformers", eq. 4): 1 where all are used alike.
    """

    def __init__(self, model: VL2Model) -> None:
        self.losses: list[Tensor] = []
        self.gates = [module for module in model.modules() if isinstance(module, Gate)]
        for gate in self.gates:
            gate.register_forward_hook(self._watch)

    def _watch(self, gate: Gate, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        scores_NE, chosen_NK = gate.scores(inputs[0]), output[0]
        used_E = F.one_hot(chosen_NK, scores_NE.shape[1]).float().mean((0, 1))
        self.losses.append(scores_NE.shape[1] * (used_E * scores_NE.mean(0)).sum())

    def take(self) -> Tensor:
        """The mean over layers since the last call."""
        loss = torch.stack(self.losses).mean()
        self.losses.clear()
        return loss


class VL2Trainer(Trainer[VL2Model]):
    """Conversations about one and about two images in one batch."""

    name = "vl2"
    weights: ClassVar[dict[str, float]] = {"two": 0.5, "balance": 0.02}
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
        self.say(f"{len(self.one)} and {len(self.two)} conversations about one and two pictures loaded")
        model = new_model(run.folder, start)
        for module in model.modules():
            if isinstance(module, MoE):
                module.experts.implementation = dense_experts
        model = model.to(run.device)
        self.learn(model)
        self.balance = LoadBalancingLoss(model)

    def render(self, scenes: dict[str, Tensor]) -> Tensor:
        return to_pixels(render_packed(jitter(scenes, OFF_LATTICE), SIDE, self.device))

    def losses(self) -> dict[str, Tensor]:
        model = self.model
        one = self.one.take(torch.randint(len(self.one), (self.rows[0],), device=self.device))
        two = self.two.take(torch.randint(len(self.two), (self.rows[1],), device=self.device))
        pixels = (self.render(one.scenes), *self._pair(two))
        with torch.autocast(self.device, torch.bfloat16, cache_enabled=False):
            views = self.views.cut(torch.cat(pixels))
            tiles = model.embed_tiles(views.flatten(0, 1)).unflatten(0, views.shape[:2])
            pictures = arrange_image_tokens(model, tiles, self.views.grid)
            single, first, second = pictures.split([len(part) for part in pixels])
            x_one = insert_image_tokens(model.embed_text(one.ids.long()).bfloat16(), single, self.offsets[0])
            x_two = insert_image_tokens(model.embed_text(two.ids.long()).bfloat16(), first, self.offsets[0])
            x_two = insert_image_tokens(x_two, second, self.offsets[1])
            spare = x_two.shape[1] - x_one.shape[1]
            hidden = model.decoder(torch.cat((F.pad(x_one, (0, 0, 0, spare)), x_two)))
            return {
                "one": answer_loss(model.text_logits, hidden[: len(x_one)], one),
                "two": answer_loss(model.text_logits, hidden[len(x_one) :], two),
                "balance": self.balance.take(),
            }

    def _pair(self, rows: Examples) -> tuple[Tensor, Tensor]:
        """Both pictures of conversations about two, the first with its frame if it has one."""
        scenes: dict[str, Any] = rows.scenes
        second = {name: scenes[f"second.{name}"] for name in ("shape", "color", "background")}
        second |= {"place": scenes["second.place"].float(), "aspect": scenes["aspect"]}
        # A frame fits what it was drawn around: these stay where they are.
        pixels = to_pixels(render_packed(scenes, SIDE, self.device))
        return draw_frames(pixels, scenes["frame"].float()), self.render(second)

    def export(self) -> None:
        """The averaged weights under their official names."""
        weights = {
            name: piece.to(torch.float32 if keep_float32(name) else torch.bfloat16).contiguous().clone()
            for own, tensor in self.average.model.state_dict().items()
            for name, piece in official_tensors(own, tensor)
        }
        save_file(weights, self.folder / "model.safetensors", {"format": "pt"})


def new_model(folder: Path, start: Path | None = None) -> VL2Model:
    """All the weights of `start`, or fresh ones and the taught tower of the folder."""
    model = VL2Model(read_config(folder))
    if start is not None:
        model.load_state_dict(VL2Pipeline.from_pretrained(start, "cpu", "float32").model.state_dict())
        return model
    initialise(model, model.config.decoder.num_layers)
    model.vision.load_state_dict(load_file(folder / TOWER))
    return model


def main() -> None:
    """Train vl2-nano."""
    parser = argparse.ArgumentParser(description="Train vl2-nano on the small world.")
    RunConfig.add_arguments(parser, "runs/vl2-nano", 400)
    parser.add_argument("--start", type=Path, help="a vl2-nano folder whose weights to begin with")
    parser.add_argument("--rows", type=int, nargs=2, default=(ONE_ROWS, TWO_ROWS), metavar=("ONE", "TWO"))
    args = parser.parse_args()
    VL2Trainer(RunConfig.of(args), args.start, tuple(args.rows)).run()


if __name__ == "__main__":
    main()
