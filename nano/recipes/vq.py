"""Recipe 1: the VQ image tokenizer of `janus-nano`. `python -m bifrons.nano.recipes.vq --help`.

B images, E dimensions of a code, N codes, M code vectors of a batch (B x grid positions).

First a plain autoencoder with unit-length latents is trained; then the codebook is drawn from its latents and
learned as a moving average of what it quantizes (van den Oord et al. 2017, appendix A.1). Unused codes are
drawn anew.
"""

import argparse
import time
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ...tokenizers.vq.model import VQModel, to_uint8
from ..world.renderer import pack, render_packed
from ..world.scene import Scene
from .datasets import training_scene
from .janus_spec import SIDE, vq_config
from .training_state import Average, Clock, load_state, save_state

BATCH = 64
PEAK_RATE = 1e-3
WARMUP = 0.08
"""Share of the training time without quantization."""
OFF_LATTICE = 0.2
"""Share of the scenes that are moved off the world's lattice; see `jitter`."""


def to_pixels(images_B3HW: Tensor) -> Tensor:
    """uint8 to -1..1, as the processor does."""
    return images_B3HW.float() * (2 / 255) - 1


def jitter(scenes: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Packed scenes, a share of them moved off the world's lattice by up to half a step and rescaled."""
    place = scenes["place"]
    chosen = (torch.rand(len(place), 1, 1, device=place.device) < share).float()
    shift = (torch.rand(len(place), 1, 2, device=place.device) - 0.5) / 32
    scale = 1 + (torch.rand(len(place), 1, 1, device=place.device) - 0.5) * 0.1
    moved = torch.cat((place[..., :2] + chosen * shift, place[..., 2:] * (1 + chosen * (scale - 1))), dim=-1)
    return {**scenes, "place": moved}


def sample_scenes(seed: int, count: int) -> list[Scene]:
    """Scenes of every kind of the training split."""
    rng = Random(seed)
    return [training_scene(rng, index) for index in range(count)]


class MovingCodebook:
    """Codes as unit vectors that follow the mean of the latents assigned to them."""

    def __init__(self, weight: Tensor, decay: float = 0.98) -> None:
        self.weight, self.decay = weight, decay
        self.sums = F.normalize(weight, dim=-1).clone()
        self.counts = torch.ones(len(weight), device=weight.device)

    @torch.no_grad()
    def start(self, latents_ME: Tensor) -> None:
        """Draw the codes from latents, an eighth at a time where the codes so far fit worst (k-means||,
        Bahmani et al. 2012), then run k-means. Most latents are background and would fill a random draw."""
        size = len(self.weight)
        book = latents_ME[torch.randint(len(latents_ME), (size // 8,), device=latents_ME.device)]
        while len(book) < size:
            book = torch.cat((book, self._misfits(latents_ME, book, size // 8)))
        for _ in range(10):
            nearest = (latents_ME @ book.T).argmax(-1)
            sums = torch.zeros_like(book).index_add_(0, nearest, latents_ME)
            empty = torch.bincount(nearest, minlength=size) == 0
            book = F.normalize(
                torch.where(empty[:, None], self._misfits(latents_ME, book, size), sums), dim=-1
            )
        self.weight.copy_(book)
        self.sums, self.counts = book.clone(), torch.ones_like(self.counts)

    @staticmethod
    def _misfits(latents_ME: Tensor, book: Tensor, count: int) -> Tensor:
        """`count` latents drawn in proportion to their squared distance from the nearest code."""
        distance = (1 - (latents_ME @ book.T).amax(-1)).clamp(min=1e-6)
        return latents_ME[torch.multinomial(distance, count, replacement=True)]

    @torch.no_grad()
    def update(self, latents_ME: Tensor, codes_M: Tensor) -> None:
        """Move the codes towards the latents assigned to them; replace unused codes."""
        used = torch.bincount(codes_M, minlength=len(self.weight)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, codes_M, latents_ME)
        self.counts.lerp_(used, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        dead = self.counts < 0.02
        fresh = self._misfits(latents_ME, self.weight, len(self.weight))
        self.sums = torch.where(dead[:, None], fresh, self.sums)
        self.counts = torch.where(dead, torch.ones_like(self.counts), self.counts)
        self.weight.copy_(F.normalize(self.sums, dim=-1))


def reconstruction_loss(out_B3HW: Tensor, pixels_B3HW: Tensor) -> Tensor:
    """Absolute and squared error, and the error of differences between neighbours, for crisp edges."""
    error = out_B3HW - pixels_B3HW
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * error.pow(2).mean() + edges


def forward(
    model: VQModel, book: MovingCodebook, pixels: Tensor, quantize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruction, commitment loss, and the unit latents `[M, E]`."""
    z = F.normalize(model.quant_conv(model.encoder(pixels)).float().permute(0, 2, 3, 1), dim=-1)
    commitment = z.new_zeros(())
    latents_ME = z.detach().flatten(0, 2)
    inner = z
    if quantize:
        codes = (latents_ME @ book.weight.T).argmax(-1)
        quantized = book.weight[codes].view_as(z)
        commitment = (z - quantized).pow(2).sum(-1).mean()
        inner = z + (quantized - z).detach()
        book.update(latents_ME, codes)
    out = model.decoder(model.post_quant_conv(inner.permute(0, 3, 1, 2)))
    return out.float(), commitment, latents_ME


def compile_first(model: VQModel, book: MovingCodebook, device: str) -> None:
    """Run once forward and backward, so that compilation is not counted as training."""
    pixels = torch.zeros(BATCH, 3, SIDE, SIDE, device=device).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        out, _, _ = forward(model, book, pixels, False)
    reconstruction_loss(out, pixels).backward()
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def psnr(model: VQModel, images_B3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of encode then decode, per picture `[B]`, on 8-bit values."""
    pixels = to_pixels(images_B3HW)
    side = SIDE // model.config.downsampling
    back = to_uint8(model.decode(model.encode(pixels), (side, side))).permute(0, 3, 1, 2)
    error = (back.float() - images_B3HW.float()).pow(2).mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error.clamp(min=1e-6))


class VQTrainer:
    """The image tokenizer in training: weights, their average, codebook, optimizer and clock."""

    def __init__(self, folder: Path, seconds: float, seed: int, device: str) -> None:
        torch.manual_seed(seed)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        self.path, self.device, self.step, self.started = folder / "vq.state", device, 0, False
        self.model = VQModel(vq_config()).to(device)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.01
        )
        self.average = Average(self.model, 0.998)
        if device == "cuda":
            self.model.encoder.compile()
            self.model.decoder.compile()
        self.scenes = {k: v.to(device) for k, v in pack(sample_scenes(seed, 60_000)).items()}
        self.book = MovingCodebook(self.model.quantize.embedding.weight.data)
        self.clock = Clock(seconds)
        self._resume()
        compile_first(self.model, self.book, device)

    def _resume(self) -> None:
        state = load_state(self.path, self.device)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.book.sums, self.book.counts = state["sums"], state["counts"]
        self.clock.spent, self.step, self.started = state["spent"], state["step"], state["started"]

    def save(self) -> None:
        """Write the state from which `train` continues."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self.book.sums,
            "counts": self.book.counts,
            "spent": self.clock.elapsed,
            "step": self.step,
            "started": self.started,
        }
        save_state(self.path, state)

    def update(self) -> dict[str, Tensor]:
        """One step of training; its losses."""
        index = torch.randint(len(self.scenes["shape"]), (BATCH,), device=self.device)
        scenes = jitter({k: v if v.ndim == 0 else v[index] for k, v in self.scenes.items()}, OFF_LATTICE)
        pixels = to_pixels(render_packed(scenes, SIDE, self.device))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        quantize = self.clock.progress > WARMUP
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            if quantize and not self.started:
                self.book.start(forward(self.model, self.book, pixels, False)[2])
                self.started = True
            out, commitment, _ = forward(self.model, self.book, pixels, quantize)
        loss = reconstruction_loss(out, pixels) + 0.25 * commitment
        for group in self.optimizer.param_groups:
            group["lr"] = self.clock.learning_rate(PEAK_RATE)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.age(self.step)
        self.average.update(self.model)
        self.average.model.quantize.embedding.weight.data.copy_(self.book.weight)
        self.step += 1
        return {"loss": loss, "commit": commitment}


def train(folder: Path, seconds: float, seed: int, device: str) -> VQModel:
    """Train for `seconds` in all, continuing from `folder/vq.state` if it exists; saves every minute."""
    trainer = VQTrainer(folder, seconds, seed, device)
    clock = trainer.clock
    clock.started = saved = time.monotonic()
    while clock.progress < 1:
        losses = trainer.update()
        if trainer.step % 500 == 0:
            values = " ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
            used = (trainer.book.counts > 0.1).sum().item()
            print(f"vq step {trainer.step} {clock.elapsed:.0f}s {values} used {used}", flush=True)
        if time.monotonic() - saved > 60 or clock.progress >= 1:
            saved = time.monotonic()
            trainer.save()
    return trainer.average.model


def main() -> None:
    """Train the image tokenizer and print its PSNR."""
    parser = argparse.ArgumentParser(description="Train janus-nano's image tokenizer on the small world.")
    parser.add_argument("--folder", type=Path, default=Path("runs/janus-nano"), help="state and result")
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    model = train(args.folder, args.seconds, args.seed, args.device)
    rounded = model.to(torch.bfloat16).float()
    pictures = render_packed(pack(sample_scenes(10**6, 256)), SIDE, args.device)
    values = psnr(rounded, pictures)
    print(f"PSNR on 256 fresh scenes: mean {values.mean():.2f} dB, least {values.min():.2f} dB")
    save_file(
        {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()},
        args.folder / "vq.safetensors",
    )


if __name__ == "__main__":
    main()
