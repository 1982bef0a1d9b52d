"""VQ-16, the image tokenizer of LlamaGen (Sun et al. 2024) and Janus: pictures to codes and back.

B pictures, C channels, H and W height and width, Z channels of the encoder's output, E dimensions of a
code, N codes in the codebook, T codes of a picture in raster order. Module names are the checkpoints'.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...blocks.model.missing_parts import absent
from . import fused_cuda, strips
from .fused_cuda import Fused
from .strips import Strips


class Operations(Protocol):
    """What computes the decoder in another form (`Strips`, `Fused`). `Any` is a feature map of its kind."""

    def begin(self, x: Tensor, /) -> Any: ...
    def normed_conv(self, x: Any, norm: nn.GroupNorm, conv: nn.Conv2d, /) -> Any: ...
    def add_normed_conv(
        self, x: Any, y: Any, norm: nn.GroupNorm, conv: nn.Conv2d, shortcut: nn.Conv2d | None, /
    ) -> Any: ...
    def attend(self, x: Any, block: "AttnBlock", /) -> Any: ...
    def upsampled_conv(self, x: Any, conv: nn.Conv2d, /) -> Any: ...
    def finish(self, x: Any, norm: nn.GroupNorm, conv: nn.Conv2d, /) -> Tensor: ...


@dataclass(frozen=True)
class VQConfig:
    """VQ-16's architecture by default. Each entry of `ch_mult` after the first halves H, W."""

    codebook_size: int = 16384
    code_dim: int = 8
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    z_channels: int = 256
    num_res_blocks: int = 2

    @property
    def downsampling(self) -> int:
        """Pixels of a picture's side per code."""
        return 2 ** (len(self.ch_mult) - 1)

    def largest_map(self, grid: tuple[int, int]) -> int:
        """Numbers of the decoder's largest feature map for one picture: at each resolution there is one with
        the channels of the coarser resolution before it."""
        last = len(self.ch_mult) - 1
        widths = [self.ch * self.ch_mult[min(level + 1, last)] for level in range(last + 1)]
        return max(width * prod(grid) << 2 * (last - level) for level, width in enumerate(widths))


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = group_norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)
        self.reshapes = channels_in != channels_out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x_BCHW)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x_BCHW) if self.reshapes else x_BCHW)

    def by(self, operations: Operations, x: Any) -> Any:
        h = operations.normed_conv(x, self.norm1, self.conv1)
        shortcut = self.nin_shortcut if self.reshapes else None
        return operations.add_normed_conv(x, h, self.norm2, self.conv2, shortcut)


class AttnBlock(nn.Module):
    """Single-head attention over all places of the grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h = self.norm(x_BCHW)
        q, k, v = (project(h).flatten(2).transpose(1, 2)[:, None] for project in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x_BCHW.shape)
        return x_BCHW + self.proj_out(out)

    def by(self, operations: Operations, x: Any) -> Any:
        return operations.attend(x, self)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))

    def by(self, operations: Operations, x: Any) -> Any:
        return operations.upsampled_conv(x, self.conv)


class Level(nn.Module):
    """Residual blocks of one resolution, each with attention behind it at the lowest; then the rescaling."""

    def __init__(self, widths: list[int], attend: bool, **rescale: nn.Module) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResBlock(*pair) for pair in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(width) for width in widths[1:]) if attend else None
        for name, module in rescale.items():
            self.add_module(name, module)
        self.rescale = tuple(rescale)

    def steps(self) -> list[nn.Module]:
        """What is computed, one after the other."""
        steps: list[nn.Module] = []
        for index, block in enumerate(self.res):
            steps += [block] if self.attn is None else [block, self.attn[index]]
        return [*steps, *map(self.get_submodule, self.rescale)]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return chain(self.steps(), x_BCHW)


def middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList((ResBlock(channels, channels), AttnBlock(channels), ResBlock(channels, channels)))


def chain(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


class Encoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        before = config.ch
        for width in widths:
            last = len(self.conv_blocks) == len(widths) - 1
            rescale = {} if last else {"downsample": Downsample(width)}
            self.conv_blocks.append(Level([before] + [width] * config.num_res_blocks, last, **rescale))
            before = width
        self.mid = middle(before)
        self.norm_out = group_norm(before)
        self.conv_out = nn.Conv2d(before, config.z_channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h = chain([*self.conv_blocks, *self.mid], self.conv_in(x_BCHW))
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in reversed(config.ch_mult)]
        before = widths[0]
        self.conv_in = nn.Conv2d(config.z_channels, before, 3, padding=1)
        self.mid = middle(before)
        self.conv_blocks = nn.ModuleList()
        for width in widths:
            first, last = not self.conv_blocks, len(self.conv_blocks) == len(widths) - 1
            rescale = {} if last else {"upsample": Upsample(width)}
            self.conv_blocks.append(Level([before] + [width] * (config.num_res_blocks + 1), first, **rescale))
            before = width
        self.norm_out = group_norm(before)
        self.conv_out = nn.Conv2d(before, 3, 3, padding=1)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        h = chain([*self.mid, *self.conv_blocks], self.conv_in(z_BCHW))
        return self.conv_out(F.silu(self.norm_out(h)))

    def by(self, operations: Operations, z_BCHW: Tensor) -> Tensor:
        """What `forward` gives, with less memory and sooner; in strips of one picture."""
        x = operations.begin(self.conv_in(z_BCHW))
        levels = [step for level in self.conv_blocks for step in level.steps()]  # type: ignore[operator]
        for module in [*self.mid, *levels]:  # nothing else holds a map
            x = module.by(operations, x)  # type: ignore[operator]
        return operations.finish(x, self.norm_out, self.conv_out)


class Codebook(nn.Module):
    """The code vectors; both they and what is compared with them are scaled to unit length at every use."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.codebook_size, config.code_dim)

    def vectors(self) -> Tensor:
        """Unit vectors, `[N, E]`."""
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, z_BEHW: Tensor) -> Tensor:
        """Index of the nearest code by squared distance, int64 `[B, H, W]`; in float32."""
        z = F.normalize(z_BEHW.permute(0, 2, 3, 1).float(), dim=-1)
        book = F.normalize(self.embedding.weight.float(), dim=-1)
        distance = z.pow(2).sum(-1, keepdim=True) + book.pow(2).sum(-1) - 2 * z @ book.T
        return distance.argmin(-1)


class VQModel(nn.Module):
    """Encoder, codebook and decoder."""

    entrances = ("encode", "decode")
    """The methods by which it is used, instead of `forward` (for `spreading`)."""

    def __init__(self, config: VQConfig, *, encodes: bool = True) -> None:
        """Without `encodes` the encoder is absent, and pictures become no codes."""
        super().__init__()
        self.config = config
        no_encoder = absent("the encoder of pictures", "paint", "all")
        self.encoder = Encoder(config) if encodes else no_encoder
        self.decoder = Decoder(config)
        self.quantize = Codebook(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_dim, 1) if encodes else no_encoder
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.z_channels, 1)

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels in -1..1 -> codes `[B, T]`."""
        return self.quantize.nearest(self.quant_conv(self.encoder(pixels_BCHW))).flatten(1)

    def decode(self, codes_BT: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes `[B, T]` of a (rows, columns) `grid` -> pixels `[B, 3, H, W]`, about -1..1, not clipped."""
        if codes_BT.shape[1] != prod(grid):
            raise ValueError(f"{codes_BT.shape[1]} codes do not fill a grid of {grid[0]} x {grid[1]}")
        if self._fuses() and codes_BT.numel():
            fused_cuda.channels_last(self.decoder)
            done = [self._decode_fused(codes, grid) for codes in codes_BT.split(self._fused_at_once(grid))]
            return done[0] if len(done) == 1 else torch.cat(done)
        book_NE = self.quantize.vectors()

        def before_decoder(codes_BT: Tensor) -> Tensor:
            return self.post_quant_conv(book_NE[codes_BT].transpose(1, 2).unflatten(2, grid))

        if not strips.suits(book_NE, self.decoder):
            return self.decoder(before_decoder(codes_BT))
        pictures = (self.decoder.by(Strips(), before_decoder(codes_1T)) for codes_1T in codes_BT.split(1))
        return torch.cat(list(pictures))

    def _decode_fused(self, codes_BT: Tensor, grid: tuple[int, int]) -> Tensor:
        with torch.cuda.device_of(codes_BT):
            book_BET = F.normalize(self.quantize.embedding(codes_BT), dim=-1).transpose(1, 2)
            return self.decoder.by(Fused(), self.post_quant_conv(book_BET.unflatten(2, grid)))

    def _fuses(self) -> bool:
        return fused_cuda.suits(self.decoder, self.quantize, self.post_quant_conv)

    def at_once(self, grid: tuple[int, int]) -> int:
        """How many pictures to decode together, at most: the fused form splits its batches by it."""
        return self._fused_at_once(grid) if self._fuses() else 1

    def _fused_at_once(self, grid: tuple[int, int]) -> int:
        return max(1, fused_cuda.NUMBERS_AT_ONCE // self.config.largest_map(grid))

    def worth_recording(self, pictures: int, grid: tuple[int, int]) -> bool:
        """Whether so many pictures are few enough for a recording that keeps their maps."""
        few = pictures * self.config.largest_map(grid) <= fused_cuda.NUMBERS_RECORDED
        return few and self._fuses()


def to_uint8(pixels_BCHW: Tensor) -> Tensor:
    """-1..1 to 0..255, clipped, then truncated as the reference does; uint8 `[B, H, W, 3]`."""
    scaled = ((pixels_BCHW.float() + 1) / 2 * 255).clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1)
