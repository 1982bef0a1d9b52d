"""Recipe 2: `janus-nano` itself, on the codes of recipe 1. `python -m bifrons.nano.recipes.janus --help`.

B rows, L prompt tokens, T image tokens of a picture, X = L + T, D decoder width, P patches of a picture.

Painting: sentences with their pictures' codes; the prompt of every tenth row is blanked as in the
unconditional row of guidance. Reading: conversations of questions, half about rendered pictures, a
quarter about what the tokenizer makes of them, so that the model can read what it paints.

At the end, with `--nucleus`, the model learns painting from itself: from its own distribution without the
tail that nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751) would not draw from. Of 256 tokens a
picture some would come from that tail, and one is enough to spoil a shape.
"""

import argparse
import copy
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ...blocks.engine.sampling import warp
from ...janus.config import JanusConfig, read_config
from ...janus.model import JanusModel
from ...janus.pipeline import JanusPipeline
from ..world.renderer import render_packed
from .datasets import Examples, answer_loss, load_examples
from .janus_data import EXAMPLES
from .janus_spec import SIDE, TurnEncoder
from .trainer import RunConfig, Trainer, initialise
from .vision import TOWER
from .vq import OFF_LATTICE, jitter, to_pixels

PAINT_ROWS, READ_ROWS = 176, 80
BLANK = 0.1
REPAINTED = 0.25
PEAK_RATE = 3.5e-3
READ_WEIGHT = 0.7


def blank_some(rows: Examples, pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts of which some are blanked, int64 `[B, L]`, and which, bool `[B]`."""
    ids, lengths = rows.ids.long(), rows.lengths
    at = torch.arange(ids.shape[1], device=ids.device)
    inside = (at > 0) & (at < lengths[:, None] - 1)
    blank = torch.rand(len(ids), device=ids.device) < BLANK
    return torch.where(inside & blank[:, None], pad_id, ids), blank


def paint_inputs(model: JanusModel, ids_BL: Tensor, lengths: Tensor, codes_BT: Tensor) -> Tensor:
    """Embeddings `[B, X, D]` of prompts, each followed by its own picture's codes but the last."""
    count = codes_BT.shape[1]
    ids_BX = F.pad(ids_BL, (0, count - 1))
    place_BX = torch.arange(ids_BX.shape[1], device=ids_BX.device) - lengths[:, None]
    shown_BX = codes_BT.gather(1, place_BX.clamp(0, count - 1))
    text, codes = model.embed_text(ids_BX).bfloat16(), model.embed_codes(shown_BX).bfloat16()
    return torch.where((place_BX < 0)[..., None], text, codes)


def paint_logits(model: JanusModel, hidden_BXD: Tensor, lengths: Tensor, count: int) -> Tensor:
    """Logits float32 `[B, T, C]` of the image tokens."""
    take_BT = lengths[:, None] - 1 + torch.arange(count, device=lengths.device)
    hidden_BTD = hidden_BXD.gather(1, take_BT[..., None].expand(-1, -1, hidden_BXD.shape[-1]))
    return model.image_logits(hidden_BTD).float()


def nucleus_loss(
    logits_BTC: Tensor, taught_BTC: Tensor, codes_BT: Tensor, blank_B: Tensor, top_p: float
) -> Tensor:
    """Cross-entropy with the nucleus of the taught distribution, or where the prompt is blank with the code:
    guidance subtracts that one, and what it left out would stand out."""
    logs_BTC = logits_BTC.log_softmax(-1)
    nucleus_BTC = warp(taught_BTC, 1.0, 0, top_p).softmax(-1)
    from_taught_BT = -(nucleus_BTC * logs_BTC).sum(-1)
    from_codes_BT = -logs_BTC.gather(-1, codes_BT[..., None])[..., 0]
    return torch.where(blank_B[:, None], from_codes_BT, from_taught_BT).mean()


def read_inputs(model: JanusModel, rows: Examples, pixels: Tensor, image_at: int) -> Tensor:
    """Embeddings of conversations; every row's picture stands at the same place."""
    pictures = model.embed_images(pixels).bfloat16()
    x_BLD = model.embed_text(rows.ids.long()).bfloat16()
    return torch.cat((x_BLD[:, :image_at], pictures, x_BLD[:, image_at + pictures.shape[1] :]), dim=1)


@torch.no_grad()
def encode_all(model: JanusModel, scenes: dict[str, Tensor], device: str) -> Tensor:
    """Codes of packed scenes, int16 `[N, T]`.

    On a plain background several codes fit almost alike, and rounding
    decides: so they are made in bfloat16 on every device.
    """
    parts = []
    for start in range(0, len(scenes["shape"]), 1024):
        chunk = {k: v if v.ndim == 0 else v[start : start + 1024] for k, v in scenes.items()}
        pixels = to_pixels(render_packed(chunk, SIDE, device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            parts.append(model.gen_vision_model.encode(pixels).short())
    return torch.cat(parts)


@torch.no_grad()
def repaint(model: JanusModel, pixels: Tensor) -> Tensor:
    """What the image tokenizer makes of pictures."""
    vq, side = model.gen_vision_model, model.config.grid
    return vq.decode(vq.encode(pixels), side).clamp(-1, 1)


class JanusTrainer(Trainer[JanusModel]):
    """Painting and reading in one batch of one width: one shape to compile, and fewer, larger products."""

    name = "janus"
    weights: ClassVar[dict[str, float]] = {"read": READ_WEIGHT}
    peak_lr = PEAK_RATE

    def __init__(
        self,
        run: RunConfig,
        start: Path | None = None,
        rows: tuple[int, int] = (PAINT_ROWS, READ_ROWS),
        nucleus: float | None = None,
    ) -> None:
        """`rows` to paint and to read in a step. `nucleus`: how much probability is kept of the distribution
        that the model has in the beginning, to learn from; None learns from the codes."""
        super().__init__(run)
        self.rows, self.nucleus, folder, device = rows, nucleus, run.folder, run.device
        config, _ = read_config(folder)
        turns = TurnEncoder(folder)
        self.image_at, self.pad_id = turns.image_at, turns.processor.pad_id
        model = new_model(config, folder, start).to(device)
        vq = model.gen_vision_model.requires_grad_(False)
        vq.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.paint = load_examples(folder / EXAMPLES, "paint").to(device)
        self.read = load_examples(folder / EXAMPLES, "read").to(device)
        self.say(f"{len(self.paint)} sentences, {len(self.read)} conversations loaded")
        self.codes = encode_all(model, self.paint.scenes, device)
        self.say(f"pictures encoded, first codes {self.codes[0, :4].tolist()}")
        learned = nn.ModuleList([part for name, part in model.named_children() if name != "gen_vision_model"])
        self.teacher = copy.deepcopy(model).requires_grad_(False) if nucleus else model
        taught = self.teacher.decoder.layers if nucleus else ()
        self.learn(model, learned, [*model.decoder.layers, *taught])

    def losses(self) -> dict[str, Tensor]:
        painting, reading = self.rows
        chosen = torch.randint(len(self.paint), (painting,), device=self.device)
        asked = torch.randint(len(self.read), (reading,), device=self.device)
        rows = self.read.take(asked)
        pixels = to_pixels(render_packed(jitter(rows.scenes, OFF_LATTICE), SIDE, self.device))
        with torch.autocast(self.device, torch.bfloat16, cache_enabled=False):
            some = int(reading * REPAINTED)
            pixels = torch.cat((repaint(self.model, pixels[:some]).float(), pixels[some:]))
            sentences, codes = self.paint.take(chosen), self.codes[chosen].long()
            ids, blank = blank_some(sentences, self.pad_id)
            painted = paint_inputs(self.model, ids, sentences.lengths, codes)
            asked_about = read_inputs(self.model, rows, pixels, self.image_at)
            spare = painted.shape[1] - asked_about.shape[1]
            hidden = self.model.decoder(torch.cat((painted, F.pad(asked_about, (0, 0, 0, spare)))))
            count = codes.shape[1]
            logits = paint_logits(self.model, hidden[:painting], sentences.lengths, count)
            if self.nucleus:
                with torch.no_grad():
                    shown = paint_inputs(self.teacher, ids, sentences.lengths, codes)
                    taught = paint_logits(self.teacher, self.teacher.decoder(shown), sentences.lengths, count)
                paint = nucleus_loss(logits, taught, codes, blank, self.nucleus)
            else:
                paint = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
            return {
                "paint": paint,
                "read": answer_loss(self.model.text_logits, hidden[painting:], rows),
            }


def new_model(config: JanusConfig, folder: Path, start: Path | None = None) -> JanusModel:
    """Fresh weights and the folder's trained image tokenizer, or all the weights of `start`; where the folder
    has a tower that was taught beforehand, that one."""
    model = JanusModel(config)
    if start is not None:
        begun = JanusPipeline.from_pretrained(start, "cpu", "float32")
        model.load_state_dict(begun.model.state_dict())
    else:
        initialise(model, config.decoder.num_layers, skip="gen_vision_model.")
        nn.init.normal_(model.gen_embed.weight, std=1.0)
        vq = load_file(folder / "vq.safetensors")
        model.gen_vision_model.load_state_dict({k: v.float() for k, v in vq.items()})
    if (folder / TOWER).exists():
        model.vision_model.vision_tower.load_state_dict(load_file(folder / TOWER))
    return model


def main() -> None:
    """Train janus-nano."""
    parser = argparse.ArgumentParser(description="Train janus-nano on the small world.")
    RunConfig.add_arguments(parser, "runs/janus-nano", 480)
    parser.add_argument("--start", type=Path, help="a janus-nano folder whose weights to begin with")
    rows = (PAINT_ROWS, READ_ROWS)
    parser.add_argument("--rows", type=int, nargs=2, default=rows, metavar=("PAINT", "READ"))
    parser.add_argument("--nucleus", type=float, help="learn painting from the start's own likeliest tokens")
    args = parser.parse_args()
    JanusTrainer(RunConfig.of(args), args.start, tuple(args.rows), args.nucleus).run()


if __name__ == "__main__":
    main()
