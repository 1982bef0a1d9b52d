"""Recipe 2: train `janus-nano` on the VQ codes of recipe 1. `python -m bifrons.nano.recipes.janus --help`.

Image generation is trained on sentences with the codes of their images; a tenth of the prompts are replaced
by padding, as in the unconditional row of classifier-free guidance. Image understanding is trained on
conversations about rendered images, a quarter of them passed through the VQ tokenizer so that the model also
understands the images it generates.

A final run with `--nucleus` distills image generation from the model's own distribution, truncated as in
nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751): of an image's 256 tokens some would be sampled from
the tail, and a single one can spoil a shape.

Shape suffixes: B rows, L prompt tokens, T tokens of an image, X = L + T - 1, C codes, D decoder width.
"""

import argparse
import copy
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ...blocks.sampling.sampling import filter_logits
from ...janus.config import JanusConfig, read_config
from ...janus.model import JanusModel
from ...janus.pipeline import JanusPipeline
from ..world.renderer import render_packed
from .datasets import Examples, answer_loss, insert_image_tokens, load_examples
from .janus_data import EXAMPLES
from .janus_spec import SIDE, TurnEncoder
from .trainer import RunConfig, Trainer, initialize
from .vision import TOWER
from .vq import OFF_LATTICE, jitter, to_pixels

GENERATION_ROWS, UNDERSTANDING_ROWS = 176, 80
"""Rows of each task in a batch."""
UNCONDITIONAL_SHARE = 0.1
"""Share of image generation prompts that are replaced by padding."""
VQ_SHARE = 0.25
"""Share of the images to understand that are encoded and decoded by the VQ tokenizer."""


def drop_prompts(batch: Examples, pad_id: int) -> tuple[Tensor, Tensor]:
    """Replace random prompts by padding, as in guidance's unconditional row.

    Returns the token ids, int64 `[B, L]`, and which rows are unconditional, bool `[B]`.
    """
    ids, lengths = batch.ids.long(), batch.lengths
    positions = torch.arange(ids.shape[1], device=ids.device)
    inside = (positions > 0) & (positions < lengths[:, None] - 1)
    unconditional = torch.rand(len(ids), device=ids.device) < UNCONDITIONAL_SHARE
    return torch.where(inside & unconditional[:, None], pad_id, ids), unconditional


def generation_inputs(model: JanusModel, ids_BL: Tensor, lengths: Tensor, codes_BT: Tensor) -> Tensor:
    """Embeddings `[B, X, D]` of prompts, each directly followed by all of its codes but the last."""
    count = codes_BT.shape[1]
    ids_BX = F.pad(ids_BL, (0, count - 1))
    index_BX = torch.arange(ids_BX.shape[1], device=ids_BX.device) - lengths[:, None]
    codes_BX = codes_BT.gather(1, index_BX.clamp(0, count - 1))
    text_BXD, image_BXD = model.embed_text(ids_BX).bfloat16(), model.embed_codes(codes_BX).bfloat16()
    return torch.where((index_BX < 0)[..., None], text_BXD, image_BXD)


def generation_logits(model: JanusModel, hidden_BXD: Tensor, lengths: Tensor, count: int) -> Tensor:
    """Logits float32 `[B, T, C]` of the `count` image tokens after each prompt."""
    index_BT = lengths[:, None] - 1 + torch.arange(count, device=lengths.device)
    hidden_BTD = hidden_BXD.gather(1, index_BT[..., None].expand(-1, -1, hidden_BXD.shape[-1]))
    return model.image_logits(hidden_BTD).float()


def nucleus_loss(
    logits_BTC: Tensor, teacher_BTC: Tensor, codes_BT: Tensor, unconditional_B: Tensor, top_p: float
) -> Tensor:
    """Mean cross-entropy with the nucleus of the teacher's distribution, or in unconditional rows the codes.

    Guidance subtracts the unconditional logits, so tokens missing from those would be amplified.
    """
    log_probs_BTC = logits_BTC.log_softmax(-1)
    teacher_NC = teacher_BTC.flatten(0, 1)
    one_N = teacher_NC.new_ones(len(teacher_NC))
    filtered_NC = filter_logits(teacher_NC, one_N, one_N.long() * 0, one_N * top_p, one_N * 0)
    nucleus_BTC = filtered_NC.softmax(-1).view_as(teacher_BTC)
    nucleus_loss_BT = -(nucleus_BTC * log_probs_BTC).sum(-1)
    code_loss_BT = -log_probs_BTC.gather(-1, codes_BT[..., None])[..., 0]
    return torch.where(unconditional_B[:, None], code_loss_BT, nucleus_loss_BT).mean()


def understanding_inputs(model: JanusModel, batch: Examples, pixels: Tensor, image_start: int) -> Tensor:
    """Embeddings `[B, L, D]` of conversations with the image tokens from position `image_start` on."""
    image_BTD = model.embed_images(pixels).bfloat16()
    return insert_image_tokens(model.embed_text(batch.ids.long()).bfloat16(), image_BTD, image_start)


@torch.no_grad()
def encode_all(model: JanusModel, scenes: dict[str, Tensor], device: str) -> Tensor:
    """VQ codes of packed scenes, int16 `[N, T]`.

    Always computed in bfloat16: on a plain background, where several codes fit almost equally well, rounding
    decides between them.
    """
    parts = []
    for start in range(0, len(scenes["shape"]), 1024):
        chunk = {k: v if v.ndim == 0 else v[start : start + 1024] for k, v in scenes.items()}
        pixels = to_pixels(render_packed(chunk, SIDE, device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            parts.append(model.gen_vision_model.encode(pixels).short())
    return torch.cat(parts)


@torch.no_grad()
def reconstruct(model: JanusModel, pixels: Tensor) -> Tensor:
    """Images in -1..1 encoded and decoded by the VQ tokenizer."""
    vq, side = model.gen_vision_model, model.config.grid
    return vq.decode(vq.encode(pixels), side).clamp(-1, 1)


class JanusTrainer(Trainer[JanusModel]):
    """Trains both tasks in one batch of one width: one shape to compile, and fewer, larger matmuls."""

    name = "janus"
    loss_weights: ClassVar[dict[str, float]] = {"read": 0.7}
    peak_lr = 3.5e-3

    def __init__(
        self,
        run: RunConfig,
        start: Path | None = None,
        rows: tuple[int, int] = (GENERATION_ROWS, UNDERSTANDING_ROWS),
        nucleus: float | None = None,
    ) -> None:
        """rows: batch rows for image generation and understanding. nucleus: top-p of the initial model's
        distribution to distill image generation from; None trains on the codes."""
        super().__init__(run)
        self.rows, self.nucleus, folder, device = rows, nucleus, run.folder, run.device
        config, _ = read_config(folder)
        encoder = TurnEncoder(folder)
        self.image_start, self.pad_id = encoder.image_at, encoder.processor.pad_id
        model = new_model(config, folder, start).to(device)
        vq = model.gen_vision_model.requires_grad_(False)
        vq.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.paint = load_examples(folder / EXAMPLES, "paint").to(device)
        self.read = load_examples(folder / EXAMPLES, "read").to(device)
        self.log(f"{len(self.paint)} sentences, {len(self.read)} conversations loaded")
        self.codes = encode_all(model, self.paint.scenes, device)
        self.log(f"images encoded, first codes {self.codes[0, :4].tolist()}")
        trainable = nn.ModuleList([m for name, m in model.named_children() if name != "gen_vision_model"])
        self.teacher = copy.deepcopy(model).requires_grad_(False) if nucleus else model
        teacher_layers = self.teacher.decoder.layers if nucleus else ()
        self.setup(model, trainable, [*model.decoder.layers, *teacher_layers])

    def losses(self) -> dict[str, Tensor]:
        rows = self.rows[0]
        prompt_index = torch.randint(len(self.paint), (rows,), device=self.device)
        conversation_index = torch.randint(len(self.read), (self.rows[1],), device=self.device)
        conversations = self.read.take(conversation_index)
        pixels = to_pixels(render_packed(jitter(conversations.scenes, OFF_LATTICE), SIDE, self.device))
        with torch.autocast(self.device, torch.bfloat16, cache_enabled=False):
            split = int(self.rows[1] * VQ_SHARE)
            pixels = torch.cat((reconstruct(self.model, pixels[:split]).float(), pixels[split:]))
            prompts, codes = self.paint.take(prompt_index), self.codes[prompt_index].long()
            ids, unconditional = drop_prompts(prompts, self.pad_id)
            x_paint = generation_inputs(self.model, ids, prompts.lengths, codes)
            x_read = understanding_inputs(self.model, conversations, pixels, self.image_start)
            padding = x_paint.shape[1] - x_read.shape[1]
            hidden = self.model.decoder(torch.cat((x_paint, F.pad(x_read, (0, 0, 0, padding)))))
            count = codes.shape[1]
            logits = generation_logits(self.model, hidden[:rows], prompts.lengths, count)
            if self.nucleus:
                with torch.no_grad():
                    x = generation_inputs(self.teacher, ids, prompts.lengths, codes)
                    teacher = generation_logits(self.teacher, self.teacher.decoder(x), prompts.lengths, count)
                paint = nucleus_loss(logits, teacher, codes, unconditional, self.nucleus)
            else:
                paint = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
            return {
                "paint": paint,
                "read": answer_loss(self.model.text_logits, hidden[rows:], conversations),
            }


def new_model(config: JanusConfig, folder: Path, start: Path | None = None) -> JanusModel:
    """A model with the weights of the folder `start`, or new ones and the VQ tokenizer of recipe 1.

    If `folder` has a pretrained vision tower, it replaces the model's.
    """
    model = JanusModel(config)
    if start is not None:
        pipe = JanusPipeline.from_pretrained(start, "cpu", "float32")
        model.load_state_dict(pipe.model.state_dict())
    else:
        initialize(model, config.decoder.num_layers, skip="gen_vision_model.")
        nn.init.normal_(model.gen_embed.weight, std=1.0)
        vq = load_file(folder / "vq.safetensors")
        model.gen_vision_model.load_state_dict({k: v.float() for k, v in vq.items()})
    if (folder / TOWER).exists():
        model.vision_model.vision_tower.load_state_dict(load_file(folder / TOWER))
    return model


def main() -> None:
    """Command line: train janus-nano."""
    parser = argparse.ArgumentParser(description="Train janus-nano on the synthetic world.")
    RunConfig.add_arguments(parser, "runs/janus-nano", 480)
    parser.add_argument("--start", type=Path, help="a janus-nano folder with initial weights")
    rows = (GENERATION_ROWS, UNDERSTANDING_ROWS)
    parser.add_argument("--rows", type=int, nargs=2, default=rows, metavar=("PAINT", "READ"))
    parser.add_argument("--nucleus", type=float, help="top-p for distilling the initial model")
    args = parser.parse_args()
    JanusTrainer(RunConfig.from_args(args), args.start, tuple(args.rows), args.nucleus).run()


if __name__ == "__main__":
    main()
