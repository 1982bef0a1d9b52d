"""Recipe 1: the VQ image tokenizer of `janus-nano`. `python -m bifrons.nano.recipes.vq --help`.

B pictures, E dimensions of a code, N codes, M code vectors of a batch (B x grid places).

First a plain autoencoder with unit-length latents, then the codebook is drawn from its latents and learned
as a moving average of what it quantises (van den Oord et al. 2017, appendix A.1), with codes that fall
out of use drawn anew.
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
from ..world.questions import sample_scene
from ..world.renderer import pack, render_packed
from ..world.scene import Scene
from ..world.sentences import KINDS, sample_case
from .janus_spec import SIDE, vq_config
from .training import Average, Clock, load_state, save_state

BATCH = 64
WARMUP = 0.08
"""Share of the time without quantisation."""
OFF_LATTICE = 0.2


def to_pixels(pictures_B3HW: Tensor) -> Tensor:
    """uint8 to -1..1, as the processor does."""
    return pictures_B3HW.float() * (2 / 255) - 1


def jitter(scenes: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Packed scenes of which a share are moved off the world's lattice by up to half a step, and rescaled."""
    place = scenes["place"]
    chosen = (torch.rand(len(place), 1, 1, device=place.device) < share).float()
    shift = (torch.rand(len(place), 1, 2, device=place.device) - 0.5) / 32
    scale = 1 + (torch.rand(len(place), 1, 1, device=place.device) - 0.5) * 0.1
    moved = torch.cat((place[..., :2] + chosen * shift, place[..., 2:] * (1 + chosen * (scale - 1))), dim=-1)
    return {**scenes, "place": moved}


def sample_scenes(seed: int, count: int) -> list[Scene]:
    """Scenes of every kind of the training split."""
    rng = Random(seed)
    kinds = (*KINDS, "mixed")
    return [sample_scene(rng) if i % 2 else sample_case(rng.choice(kinds), rng).scene for i in range(count)]


class MovingCodebook:
    """Codes as unit vectors that follow the mean of the latents that they stand for."""

    def __init__(self, weight: Tensor, decay: float = 0.98) -> None:
        self.weight, self.decay = weight, decay
        self.sums = F.normalize(weight, dim=-1).clone()
        self.counts = torch.ones(len(weight), device=weight.device)

    @torch.no_grad()
    def start(self, latents_ME: Tensor) -> None:
        """Draw the codes from latents: an eighth at a time, where the codes so far fit worst (k-means||,
        Bahmani et al. 2012), then k-means. Most latents are plain background and would fill a random draw."""
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
def psnr(model: VQModel, pictures_B3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of encode then decode, per picture `[B]`, on 8-bit values."""
    pixels = to_pixels(pictures_B3HW)
    side = SIDE // model.config.downsampling
    back = to_uint8(model.decode(model.encode(pixels), (side, side))).permute(0, 3, 1, 2)
    error = (back.float() - pictures_B3HW.float()).pow(2).mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error.clamp(min=1e-6))


def train(folder: Path, seconds: float, seed: int, device: str) -> VQModel:
    """Train for `seconds` in all, going on from `folder/vq.state` if it is there; saves every minute."""
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    model = VQModel(vq_config()).to(device)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    average = Average(model, 0.998)
    if device == "cuda":
        model.encoder.compile()
        model.decoder.compile()
    packed = {k: v.to(device) for k, v in pack(sample_scenes(seed, 60_000)).items()}
    book, clock = MovingCodebook(model.quantize.embedding.weight.data), Clock(seconds)
    state, path, step, started = load_state(folder / "vq.state", device), folder / "vq.state", 0, False
    if state is not None:
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        book.sums, book.counts = state["sums"], state["counts"]
        clock.spent, step, started = state["spent"], state["step"], state["started"]
    compile_first(model, book, device)
    clock.started = saved = time.monotonic()
    while clock.progress < 1:
        index = torch.randint(len(packed["shape"]), (BATCH,), device=device)
        scenes = {k: v if v.ndim == 0 else v[index] for k, v in packed.items()}
        scenes = jitter(scenes, OFF_LATTICE)
        pixels = to_pixels(render_packed(scenes, SIDE, device)).contiguous(memory_format=torch.channels_last)
        quantize = clock.progress > WARMUP
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            if quantize and not started:
                book.start(forward(model, book, pixels, False)[2])
                started = True
            out, commitment, _ = forward(model, book, pixels, quantize)
        loss = reconstruction_loss(out, pixels) + 0.25 * commitment
        for group in optimizer.param_groups:
            group["lr"] = clock.learning_rate(1e-3)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.age(step)
        average.update(model)
        average.model.quantize.embedding.weight.data.copy_(book.weight)
        step += 1
        if step % 500 == 0:
            used = (book.counts > 0.1).sum().item()
            print(
                f"vq step {step} {clock.elapsed:.0f}s loss {loss.item():.4f} "
                f"commit {commitment.item():.4f} used {used}",
                flush=True,
            )
        if time.monotonic() - saved > 60 or clock.progress >= 1:
            saved = time.monotonic()
            save_state(
                path,
                {
                    "model": model.state_dict(),
                    "average": average.model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "sums": book.sums,
                    "counts": book.counts,
                    "spent": clock.elapsed,
                    "step": step,
                    "started": started,
                },
            )
    return average.model


def main() -> None:
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
