"""VQ-16, the image tokenizer of LlamaGen (Sun et al. 2024) and Janus: images to codes and back.

B images, C channels, H and W height and width, Z channels of the encoder's output, E dimensions of a
code, N codes in the codebook, T codes of an image in raster order. Module names are the checkpoints'.
"""

from collections.abc import Iterable
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...blocks.model.missing_parts import missing_part
from . import fused_cuda
from .config import VQConfig
from .operations import NORM_EPS, ChannelsLastOps, DecoderOps, Norm, WeightBias
from .patch_encoder import PatchEncoder


def _norm(module: nn.GroupNorm) -> Norm:
    return Norm(module.weight, module.bias, module.num_groups)


def _weights(*modules: nn.Module) -> tuple[WeightBias, ...]:
    return tuple((module.weight, module.bias) for module in modules)  # type: ignore[misc]


class ResBlock(nn.Module):
    """Two normed convolutions and a shortcut, by a 1 x 1 convolution where the channels change."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, NORM_EPS)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels_out, NORM_EPS)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)
        self.has_shortcut = channels_in != channels_out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x_BCHW)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x_BCHW) if self.has_shortcut else x_BCHW)

    def forward_with(self, ops: DecoderOps, x: Any) -> Any:
        """`forward` by other operations."""
        h = ops.normed_conv(x, _norm(self.norm1), *_weights(self.conv1))
        shortcut = _weights(self.nin_shortcut)[0] if self.has_shortcut else None
        (conv,) = _weights(self.conv2)
        return ops.add_normed_conv(x, h, _norm(self.norm2), conv, shortcut)


class AttnBlock(nn.Module):
    """Single-head attention over all positions of the grid."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, NORM_EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h = self.norm(x_BCHW)
        q, k, v = (project(h).flatten(2).transpose(1, 2)[:, None] for project in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x_BCHW.shape)
        return x_BCHW + self.proj_out(out)

    def forward_with(self, ops: DecoderOps, x: Any) -> Any:
        """`forward` by other operations."""
        return ops.attend(x, _norm(self.norm), *_weights(self.q, self.k, self.v, self.proj_out))


class Downsample(nn.Module):
    """Halves H and W by a convolution of stride 2, padded at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles H and W by repetition, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))

    def forward_with(self, ops: DecoderOps, x: Any) -> Any:
        """`forward` by other operations."""
        return ops.upsampled_conv(x, *_weights(self.conv))


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention at the lowest; then the rescaling."""

    def __init__(self, widths: list[int], groups: int, attend: bool, **rescale: nn.Module) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResBlock(*pair, groups) for pair in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(width, groups) for width in widths[1:]) if attend else None
        for name, module in rescale.items():
            self.add_module(name, module)
        self.rescale = tuple(rescale)

    def steps(self) -> list[nn.Module]:
        """The modules in the order of computation."""
        steps: list[nn.Module] = []
        for index, block in enumerate(self.res):
            steps += [block] if self.attn is None else [block, self.attn[index]]
        return [*steps, *map(self.get_submodule, self.rescale)]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return chain(self.steps(), x_BCHW)


def middle(channels: int, groups: int) -> nn.ModuleList:
    """The blocks at the lowest resolution, between the levels and the codes."""
    first, attention = ResBlock(channels, channels, groups), AttnBlock(channels, groups)
    return nn.ModuleList((first, attention, ResBlock(channels, channels, groups)))


def chain(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The modules applied one after the other."""
    for module in modules:
        x = module(x)
    return x


class Encoder(nn.Module):
    """Pixels `[B, 3, H, W]` to latents `[B, Z, H / downsampling, W / downsampling]`."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        before = config.ch
        for width in widths:
            last = len(self.conv_blocks) == len(widths) - 1
            rescale = {} if last else {"downsample": Downsample(width)}
            level = [before] + [width] * config.num_res_blocks, config.norm_groups, last
            self.conv_blocks.append(Level(*level, **rescale))
            before = width
        self.mid = middle(before, config.norm_groups)
        self.norm_out = nn.GroupNorm(config.norm_groups, before, NORM_EPS)
        self.conv_out = nn.Conv2d(before, config.z_channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h = chain([*self.conv_blocks, *self.mid], self.conv_in(x_BCHW))
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Latents `[B, Z, H, W]` to pixels `[B, 3, H x downsampling, W x downsampling]`."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in reversed(config.ch_mult)]
        before = widths[0]
        self.conv_in = nn.Conv2d(config.z_channels, before, 3, padding=1)
        self.mid = middle(before, config.norm_groups)
        self.conv_blocks = nn.ModuleList()
        for width in widths:
            first, last = not self.conv_blocks, len(self.conv_blocks) == len(widths) - 1
            rescale = {} if last else {"upsample": Upsample(width)}
            inner = [before] + [width] * (config.num_res_blocks + 1)
            self.conv_blocks.append(Level(inner, config.norm_groups, first, **rescale))
            before = width
        self.norm_out = nn.GroupNorm(config.norm_groups, before, NORM_EPS)
        self.conv_out = nn.Conv2d(before, 3, 3, padding=1)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        h = chain([*self.mid, *self.conv_blocks], self.conv_in(z_BCHW))
        return self.conv_out(F.silu(self.norm_out(h)))

    def forward_with(self, ops: DecoderOps, z_BCHW: Tensor) -> Tensor:
        """`forward` by other operations."""
        x = ops.begin(self.conv_in(z_BCHW))
        levels = [step for level in self.conv_blocks for step in level.steps()]  # type: ignore[operator]
        for module in [*self.mid, *levels]:  # no other reference keeps a feature map alive
            x = module.forward_with(ops, x)  # type: ignore[operator]
        return ops.finish(x, _norm(self.norm_out), *_weights(self.conv_out))


class Codebook(nn.Module):
    """The code vectors. They and the latents compared with them are scaled to unit length at every use."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        vectors_NE = torch.randn(config.codebook_size, config.code_dim)
        self.embedding = nn.Embedding.from_pretrained(vectors_NE, freeze=False)

    def vectors(self) -> Tensor:
        """Unit vectors, `[N, E]`."""
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, z_BEHW: Tensor) -> Tensor:
        """Index of the nearest code by squared distance, computed in float32; int64 `[B, H, W]`."""
        z = F.normalize(z_BEHW.permute(0, 2, 3, 1).float(), dim=-1)
        book = F.normalize(self.embedding.weight.float(), dim=-1)
        distance = z.pow(2).sum(-1, keepdim=True) + book.pow(2).sum(-1) - 2 * z @ book.T
        return distance.argmin(-1)


class VQModel(nn.Module):
    """Encoder, codebook and decoder."""

    entry_methods = ("encode", "decode")
    """The methods that callers use in place of `forward`; offloading wraps them."""

    def __init__(self, config: VQConfig, *, encodes: bool = True) -> None:
        """Without `encodes` the encoder is a `MissingPart`, and `encode` raises OptionError."""
        super().__init__()
        self.config = config
        no_encoder = missing_part("the encoder of pictures", "paint", "all")
        encoder = PatchEncoder if config.patch_width else Encoder
        self.encoder = encoder(config) if encodes else no_encoder
        self.decoder = Decoder(config)
        self.quantize = Codebook(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_dim, 1) if encodes else no_encoder
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.z_channels, 1)

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels in -1..1 -> codes `[B, T]`; -1 stands for features that are NaN or infinite."""
        z_BCHW = self.quant_conv(self.encoder(pixels_BCHW))
        codes_BHW = self.quantize.nearest(z_BCHW)
        return codes_BHW.masked_fill(~z_BCHW.isfinite().all(1), -1).flatten(1)

    def decode(self, codes_BT: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes `[B, T]` of a (rows, columns) `grid` -> pixels `[B, 3, H, W]`, about -1..1, not clipped.

        The faster forms take one image at a time, as convolutions round by the number of images.
        """
        if codes_BT.shape[1] != prod(grid):
            raise ValueError(f"{codes_BT.shape[1]} codes do not fill a grid of {grid[0]} x {grid[1]}")
        if self.uses_fused() and codes_BT.numel():
            fused_cuda.lay_out_channels_last(list(self.decoder.parameters()))
            return torch.cat([self._decode_fused(codes_1T, grid) for codes_1T in codes_BT.split(1)])
        book_NE = self.quantize.vectors()
        if not ChannelsLastOps.supports(book_NE, self.decoder.parameters()):
            return self.decoder(self._latents(book_NE[codes_BT], grid))
        latents = (self._latents(book_NE[codes_1T], grid) for codes_1T in codes_BT.split(1))
        return torch.cat([self.decoder.forward_with(ChannelsLastOps(), z_1ZHW) for z_1ZHW in latents])

    def _latents(self, vectors_BTE: Tensor, grid: tuple[int, int]) -> Tensor:
        """The decoder's input `[B, Z, *grid]`."""
        return self.post_quant_conv(vectors_BTE.transpose(1, 2).unflatten(2, grid))

    def _decode_fused(self, codes_1T: Tensor, grid: tuple[int, int]) -> Tensor:
        with torch.cuda.device_of(codes_1T):
            vectors_1TE = F.normalize(self.quantize.embedding(codes_1T), dim=-1)
            return self.decoder.forward_with(fused_cuda.FusedOps(), self._latents(vectors_1TE, grid))

    def uses_fused(self) -> bool:
        """Whether `decode` uses the fused operations for CUDA."""
        modules = (self.decoder, self.quantize, self.post_quant_conv)
        return fused_cuda.supports([weight for module in modules for weight in module.parameters()])


def to_uint8(pixels_BCHW: Tensor) -> Tensor:
    """-1..1 to 0..255, clipped, then truncated as the reference does; uint8 `[B, H, W, 3]`."""
    scaled = ((pixels_BCHW.float() + 1) / 2 * 255).clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1)
