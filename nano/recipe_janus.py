"""Recipe 2: `janus-nano` itself, on the codes of recipe 1. `python -m bifrons.nano.recipe_janus --help`.

B rows, L prompt tokens, T image tokens of a picture, X = L + T, D decoder width, P patches of a picture.

Painting: sentences with their pictures' codes; the prompt of every tenth row is blanked as in the
unconditional row of guidance. Reading: conversations of questions, half about rendered pictures, a
quarter about what the tokenizer makes of them, so that the model can read what it paints.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..janus.config import JanusConfig, read_config
from ..janus.model import JanusModel
from .datasets import Examples, load_examples
from .janus_format import TurnEncoder
from .janus_spec import SIDE
from .optimizer import Muon, split_parameters
from .recipe_data import EXAMPLES
from .recipe_vq import OFF_LATTICE, jitter, to_pixels
from .render import render_packed
from .training import Average, Clock, load_state, save_state

PAINT_ROWS, READ_ROWS = 192, 64
BLANK = 0.1
REPAINTED = 0.25
PEAK_RATE = 3.5e-3
SAVE_EVERY = 150.0
"""Seconds between saved states."""


def paint_inputs(model: JanusModel, rows: Examples, codes_BT: Tensor, pad_id: int) -> Tensor:
    """Embeddings `[B, X, D]` of prompts, each followed by its own picture's codes but the last."""
    ids, lengths = rows.ids.long(), rows.lengths
    at = torch.arange(ids.shape[1], device=ids.device)
    inside = (at > 0) & (at < lengths[:, None] - 1)
    blank = torch.rand(len(ids), 1, device=ids.device) < BLANK
    ids = torch.where(inside & blank, pad_id, ids)
    count = codes_BT.shape[1]
    ids_BX = F.pad(ids, (0, count - 1))
    place_BX = torch.arange(ids_BX.shape[1], device=ids.device) - lengths[:, None]
    shown_BX = codes_BT.gather(1, place_BX.clamp(0, count - 1))
    text, codes = model.embed_text(ids_BX).bfloat16(), model.embed_codes(shown_BX).bfloat16()
    return torch.where((place_BX < 0)[..., None], text, codes)


def paint_loss(model: JanusModel, hidden_BXD: Tensor, lengths: Tensor, codes_BT: Tensor) -> Tensor:
    """Cross-entropy of the image tokens."""
    take_BT = lengths[:, None] - 1 + torch.arange(codes_BT.shape[1], device=lengths.device)
    hidden_BTD = hidden_BXD.gather(1, take_BT[..., None].expand(-1, -1, hidden_BXD.shape[-1]))
    return F.cross_entropy(model.image_logits(hidden_BTD).float().flatten(0, 1), codes_BT.flatten())


def read_inputs(model: JanusModel, rows: Examples, pixels: Tensor, image_at: int) -> Tensor:
    """Embeddings of conversations; every row's picture stands at the same place."""
    pictures = model.embed_pictures(pixels).bfloat16()
    x_BLD = model.embed_text(rows.ids.long()).bfloat16()
    return torch.cat((x_BLD[:, :image_at], pictures, x_BLD[:, image_at + pictures.shape[1] :]), dim=1)


def read_loss(model: JanusModel, hidden_BLD: Tensor, rows: Examples) -> Tensor:
    """Cross-entropy of the answers' tokens."""
    ids, learn = rows.ids.long(), rows.learn[:, 1:].flatten()
    logits = model.text_logits(hidden_BLD[:, : ids.shape[1] - 1]).float()
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * learn).sum() / learn.sum()


@torch.no_grad()
def encode_all(model: JanusModel, scenes: dict[str, Tensor], device: str) -> Tensor:
    """Codes of packed scenes, int16 `[N, T]`."""
    parts = []
    for start in range(0, len(scenes["shape"]), 1024):
        chunk = {k: v if v.ndim == 0 else v[start : start + 1024] for k, v in scenes.items()}
        pixels = to_pixels(render_packed(chunk, SIDE, device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
            parts.append(model.gen_vision_model.encode(pixels).short())
    return torch.cat(parts)


@torch.no_grad()
def repaint(model: JanusModel, pixels: Tensor) -> Tensor:
    """What the image tokenizer makes of pictures."""
    vq, side = model.gen_vision_model, model.config.grid
    return vq.decode(vq.encode(pixels), side).clamp(-1, 1)


class Trainer:
    """Model, data and optimisers. On CUDA a whole step is one captured graph: the model is so small that
    launching its kernels one by one would take several times as long as running them."""

    def __init__(
        self, folder: Path, seconds: float, seed: int, device: str, *, wall: float, graph: bool
    ) -> None:
        self.folder, self.device, self.seed, self.step = folder, device, seed, 0
        self.wall, self.graph = wall, graph
        self.began = time.monotonic()
        config, _ = read_config(folder)
        turns = TurnEncoder(folder)
        self.image_at, self.pad_id = turns.image_at, turns.processor.pad_id
        torch.manual_seed(seed)
        torch.set_float32_matmul_precision("high")
        self.model = new_model(config, folder / "vq.safetensors").to(device)
        vq = self.model.gen_vision_model.requires_grad_(False)
        vq.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.paint = load_examples(folder / EXAMPLES, "paint").to(device)
        self.read = load_examples(folder / EXAMPLES, "read").to(device)
        self.say(f"{len(self.paint)} sentences, {len(self.read)} conversations loaded")
        self.codes = encode_all(self.model, self.paint.scenes, device)
        self.say(f"pictures encoded, first codes {self.codes[0, :4].tolist()}")
        self.average = Average(self.model)
        self.rate = torch.zeros((), device=device)
        self.optimizers = self._optimizers()
        self.clock = Clock(seconds)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:.0f}s: {text}", flush=True)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        learned = nn.ModuleList(
            [part for name, part in self.model.named_children() if name != "gen_vision_model"]
        )
        matrices, rest = split_parameters(learned)
        adam = torch.optim.AdamW(
            rest,
            self.rate,
            betas=(0.9, 0.95),
            weight_decay=0.01,
            capturable=self.device == "cuda",
            foreach=self.device == "cuda",
        )
        return [Muon(matrices, self.rate), adam]

    def losses(self) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self.paint), (PAINT_ROWS,), device=self.device)
        asked = torch.randint(len(self.read), (READ_ROWS,), device=self.device)
        rows = self.read.take(asked)
        pixels = to_pixels(render_packed(jitter(rows.scenes, OFF_LATTICE), SIDE, self.device))
        with torch.autocast(self.device, torch.bfloat16, cache_enabled=False):
            some = int(READ_ROWS * REPAINTED)
            pixels = torch.cat((repaint(self.model, pixels[:some]).float(), pixels[some:]))
            sentences, codes = self.paint.take(chosen), self.codes[chosen].long()
            painted = paint_inputs(self.model, sentences, codes, self.pad_id)
            asked_about = read_inputs(self.model, rows, pixels, self.image_at)
            # One batch of one width: one shape to compile, and fewer, larger products.
            spare = painted.shape[1] - asked_about.shape[1]
            hidden = self.model.decoder(torch.cat((painted, F.pad(asked_about, (0, 0, 0, spare)))))
            paint = paint_loss(self.model, hidden[:PAINT_ROWS], sentences.lengths, codes)
            read = read_loss(self.model, hidden[PAINT_ROWS:], rows)
        return paint, read

    def update(self) -> tuple[Tensor, Tensor]:
        """One step of training in tensor operations only: the rate of learning is read from `self.rate`."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        paint, read = self.losses()
        (paint + 0.5 * read).backward()
        params = [
            p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]
        ]
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update(self.model)
        return paint.detach(), read.detach()

    def prepare(self) -> Callable[[], tuple[Tensor, Tensor]]:
        """Compile and capture `update`; what the rehearsal changed is put back."""
        if self.device != "cuda":
            return self.update
        for block in self.model.decoder.layers:
            block.compile(dynamic=False)
        before = [p.detach().clone() for p in self.model.parameters()]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.update()
        torch.cuda.current_stream().wait_stream(side)
        if not self.graph:
            self.restore(before)
            return self.update
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            shown = self.update()
        self.restore(before)

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return shown

        return replay

    @torch.no_grad()
    def restore(self, weights: list[Tensor]) -> None:
        """Weights, their average and the optimisers as they were before a rehearsal."""
        torch._foreach_copy_(list(self.model.parameters()), weights)
        torch._foreach_copy_(list(self.average.model.parameters()), weights)
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                for value in state.values():
                    value.zero_()

    def resume(self) -> None:
        """Go on from the saved state, copied into the tensors that a captured step works on."""
        state = load_state(self.folder / "janus.state", self.device)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            tensors = [value for entry in optimizer.state.values() for value in entry.values()]
            if tensors:
                torch._foreach_copy_(tensors, saved)
        self.step, self.clock.spent = state["step"], state["spent"]

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimizers": [
                [v for entry in o.state.values() for v in entry.values()] for o in self.optimizers
            ],
            "step": self.step,
            "spent": self.clock.elapsed,
        }
        save_state(self.folder / "janus.state", state)
        weights = {k: v.to(torch.bfloat16).contiguous() for k, v in self.average.model.state_dict().items()}
        save_file(weights, self.folder / "model.safetensors", {"format": "pt"})

    def run(self) -> None:
        if self.device != "cuda":
            self.update()  # makes the optimisers' state, which `resume` fills; at a rate of zero
        step = self.prepare()
        self.resume()
        torch.manual_seed(self.seed + 1000 * self.step)
        self.clock.started = saved = time.monotonic()
        self.clock.seconds = min(self.clock.seconds, self.clock.spent + self.wall - (saved - self.began))
        self.say(f"ready to train for {self.clock.seconds - self.clock.spent:.0f}s")
        while self.clock.progress < 1:
            self.rate.fill_(self.clock.learning_rate(PEAK_RATE))
            self.average.age(self.step)
            paint, read = step()
            self.step += 1
            if self.step % 10 == 0:
                paint_now, read_now = paint.item(), read.item()  # waits, so that the clock is true
                if self.step % 200 == 0:
                    self.say(f"step {self.step} paint {paint_now:.4f} read {read_now:.4f}")
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        self.save()
        self.say(f"{self.step} steps done")


def new_model(config: JanusConfig, vq: Path) -> JanusModel:
    """A model with fresh weights (normal, 0.02; block outputs scaled by depth) and the trained tokenizer."""
    model = JanusModel(config)
    for name, param in model.named_parameters():
        if name.startswith("gen_vision_model."):
            continue
        if param.ndim >= 2:
            deep = name.endswith(("o_proj.weight", "down_proj.weight", "proj.weight", "fc2.weight"))
            nn.init.normal_(param, std=0.02 / (2 * config.decoder.num_layers) ** 0.5 if deep else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(param)
    nn.init.normal_(model.gen_embed.weight, std=1.0)
    model.gen_vision_model.load_state_dict({k: v.float() for k, v in load_file(vq).items()})
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Train janus-nano on the small world.")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/janus-nano"), help="holds vq.safetensors; state and result"
    )
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument(
        "--wall", type=float, default=1e9, help="seconds for everything; shortens the schedule"
    )
    parser.add_argument("--no-graph", action="store_true", help="launch every kernel of a step by itself")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    trainer = Trainer(
        args.folder, args.seconds, args.seed, args.device, wall=args.wall, graph=not args.no_graph
    )
    trainer.run()


if __name__ == "__main__":
    main()
