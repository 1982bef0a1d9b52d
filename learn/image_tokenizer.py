"""Training of a VQ image tokenizer from new weights.

B pictures, H and W pixels or positions of the grid, E dimensions of a code, N codes of the codebook, M code
vectors of a batch (B x grid positions); 3 is red, green, blue.

First a plain autoencoder with unit-length latents is trained; then the codebook is drawn from its latents and
learned as a moving average of what it quantizes (van den Oord et al. 2017, arXiv 1711.00937, appendix A.1).
Unused codes are drawn anew.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks.errors import OptionError
from ..tokenizers.vq.model import VQModel, to_uint8
from .distributed import world
from .pretraining import Objective

COMMITMENT = 0.25
"""Weight of the loss that keeps latents near their codes (van den Oord et al. 2017, eq. 3)."""


class Codebook(nn.Module):
    """Codes as unit vectors `[N, E]` that follow the mean of the latents assigned to them."""

    DEAD = 0.02
    """Uses a batch, on average, below which a code is drawn anew."""
    TOO_NEAR = 0.9995
    """Cosine to an earlier code from which on a code is drawn anew. Else most codes would crowd where most
    latents are, those of plain background, and which of them a picture has would be chance."""

    def __init__(self, weight: Tensor, decay: float = 0.98) -> None:
        super().__init__()
        self.decay = decay
        self.weight: Tensor
        self.sums: Tensor
        self.counts: Tensor
        self.register_buffer("weight", weight)
        self.register_buffer("sums", F.normalize(weight, dim=-1).clone())
        self.register_buffer("counts", torch.ones(len(weight), device=weight.device))

    @torch.no_grad()
    def start(self, latents_ME: Tensor) -> None:
        """Draw the codes from latents, an eighth at a time where the codes so far fit worst (k-means||,
        Bahmani et al. 2012), then run k-means. Most latents are background and would fill a random draw."""
        size = len(self.weight)
        book = latents_ME[torch.randint(len(latents_ME), (size // 8,), device=latents_ME.device)]
        while len(book) < size:
            book = torch.cat((book, _misfits(latents_ME, book, min(size // 8, size - len(book)))))
        for _ in range(10):
            nearest = (latents_ME @ book.T).argmax(-1)
            sums = torch.zeros_like(book).index_add_(0, nearest, latents_ME)
            empty = torch.bincount(nearest, minlength=size) == 0
            book = torch.where(empty[:, None], _misfits(latents_ME, book, size), sums)
            book = F.normalize(book, dim=-1)
        self.weight.copy_(book)
        self.sums.copy_(book)
        self.counts.fill_(1.0)

    @torch.no_grad()
    def update(self, latents_ME: Tensor, codes_M: Tensor) -> None:
        """Move the codes towards the latents assigned to them; replace unused codes."""
        used = torch.zeros_like(self.counts).index_add_(0, codes_M, torch.ones_like(latents_ME[:, 0]))
        sums = torch.zeros_like(self.sums).index_add_(0, codes_M, latents_ME)
        self.counts.lerp_(used, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        too_near = torch.tril(self.weight @ self.weight.T, -1).amax(-1) > self.TOO_NEAR
        dead = (self.counts < self.DEAD) | too_near
        fresh = _misfits(latents_ME, self.weight, len(self.weight))
        self.sums.copy_(torch.where(dead[:, None], fresh, self.sums))
        self.counts.copy_(torch.where(dead, torch.ones_like(self.counts), self.counts))
        self.weight.copy_(F.normalize(self.sums, dim=-1))


def _misfits(latents_ME: Tensor, book: Tensor, count: int) -> Tensor:
    """`count` latents drawn in proportion to their squared distance from the nearest code."""
    distance_M = (1 - (latents_ME @ book.T).amax(-1)).clamp(min=1e-6)
    edges_M = distance_M.double().cumsum(0)
    draws = torch.rand(count, dtype=torch.float64, device=edges_M.device) * edges_M[-1]
    return latents_ME[torch.searchsorted(edges_M, draws).clamp(max=len(latents_ME) - 1)]


def reconstruction_loss(out_B3HW: Tensor, pixels_B3HW: Tensor) -> Tensor:
    """Absolute and squared error, and the error of differences between neighbours, for crisp edges."""
    error = out_B3HW - pixels_B3HW
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * error.pow(2).mean() + edges


class TokenizerObjective(Objective):
    """An image tokenizer, and the pictures that `draw` makes, by tensor operations: float `[B, 3, S, S]` in
    -1..1. `warmup` is the share of the training without quantization; with 0 the model's codes are learned
    further from the first step on. Runs in one process. Raises `OptionError`.
    """

    def __init__(
        self,
        model: VQModel,
        draw: Callable[[], Tensor],
        warmup: float = 0.08,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__()
        self.loss_weights = {"commitment": COMMITMENT}
        if world() > 1:
            raise OptionError("the image tokenizer is trained in one process; accepted: no torchrun")
        self.model, self.draw, self.warmup, self.dtype = model.train(), draw, warmup, dtype
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        model.quantize.embedding.weight.requires_grad_(False)
        self.codebook = Codebook(model.quantize.embedding.weight.data)
        self.quantizes: Tensor
        self.register_buffer("quantizes", torch.tensor(warmup == 0))  # on the host

    def compiled(self) -> Iterable[nn.Module]:
        return self.model.encoder, self.model.decoder

    def begin_step(self, progress: float) -> bool:
        if bool(self.quantizes) or progress <= self.warmup:
            return False
        with torch.no_grad():
            with self._autocast():
                latents_ME = self._latents(self._pixels()).flatten(0, 2)
            self.codebook.start(latents_ME)
        self.quantizes.fill_(True)
        return True

    def losses(self) -> dict[str, Tensor]:
        pixels = self._pixels()
        with self._autocast():
            z = self._latents(pixels)
            inner, commitment = z, z.detach().new_zeros(())
            if self.quantizes:
                quantized = self._quantize(z.detach().flatten(0, 2)).view_as(z)
                commitment = (z - quantized).pow(2).sum(-1).mean()
                inner = z + (quantized - z).detach()
            out = self.model.decoder(self.model.post_quant_conv(inner.permute(0, 3, 1, 2))).float()
        return {"reconstruction": reconstruction_loss(out, pixels), "commitment": commitment}

    def _quantize(self, latents_ME: Tensor) -> Tensor:
        """The nearest codes' vectors; the codebook learns from the latents. In float32: many codes differ by
        less than bfloat16 can tell."""
        with torch.autocast(latents_ME.device.type, enabled=False):
            codes_M = (latents_ME @ self.codebook.weight.T).argmax(-1)
            quantized_ME = self.codebook.weight[codes_M]
            self.codebook.update(latents_ME, codes_M)
        return quantized_ME

    def _pixels(self) -> Tensor:
        return self.draw().contiguous(memory_format=torch.channels_last)

    def _latents(self, pixels_B3HW: Tensor) -> Tensor:
        """Unit vectors `[B, H, W, E]`."""
        z = self.model.quant_conv(self.model.encoder(pixels_B3HW)).float()
        return F.normalize(z.permute(0, 2, 3, 1), dim=-1)

    def _autocast(self) -> torch.autocast:
        device = self.codebook.weight.device.type
        return torch.autocast(device, self.dtype, enabled=device == "cuda", cache_enabled=False)


@torch.no_grad()
def psnr(model: VQModel, images_B3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of encode then decode, per picture `[B]`, of uint8 pictures."""
    pixels = images_B3HW.float() * (2 / 255) - 1
    rows, columns = (size // model.config.downsampling for size in pixels.shape[2:])
    back = to_uint8(model.decode(model.encode(pixels), (rows, columns))).permute(0, 3, 1, 2)
    error = (back.float() - images_B3HW.float()).pow(2).mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error.clamp(min=1e-6))
