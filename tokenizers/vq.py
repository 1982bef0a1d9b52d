"""VQ-16, the image tokenizer of LlamaGen (Sun et al. 2024) and Janus: pictures to codes and back.

B pictures, C channels, H and W height and width, Z channels of the encoder's output, E dimensions of a
code, N codes in the codebook, T codes of a picture in raster order. Module names are the checkpoints'.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks.absent import absent
from .vq_strips import Map, Strips, suits


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

    def in_strips(self, x: Map, strips: Strips) -> Map:
        h = strips.normed_conv(x, self.norm1, self.conv1)
        shortcut = self.nin_shortcut if self.reshapes else None
        return strips.add_normed_conv(x, h, self.norm2, self.conv2, shortcut)


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

    def in_strips(self, x: Map, strips: Strips) -> Map:
        return strips.begin(self(x.x_1CHW))


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

    def in_strips(self, x: Map, strips: Strips) -> Map:
        return strips.upsampled_conv(x, self.conv)


class Level(nn.Module):
    """Residual blocks of one resolution, each with attention behind it at the lowest; then the rescaling."""

    def __init__(self, widths: list[int], attend: bool, **rescale: nn.Module) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResBlock(*pair) for pair in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(width) for width in widths[1:]) if attend else None
        for name, module in rescale.items():
            self.add_module(name, module)
        self.rescale = tuple(rescale)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for index, block in enumerate(self.res):
            x_BCHW = block(x_BCHW)
            if self.attn is not None:
                x_BCHW = self.attn[index](x_BCHW)
        for name in self.rescale:
            x_BCHW = self.get_submodule(name)(x_BCHW)
        return x_BCHW

    def in_strips(self, x: Map, strips: Strips) -> Map:
        for index, block in enumerate(self.res):
            after = [] if self.attn is None else [self.attn[index]]
            x = chain_in_strips([block, *after], x, strips)
        return chain_in_strips(map(self.get_submodule, self.rescale), x, strips)


def middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList((ResBlock(channels, channels), AttnBlock(channels), ResBlock(channels, channels)))


def chain(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def chain_in_strips(modules: Iterable[nn.Module], x: Map, strips: Strips) -> Map:
    for module in modules:
        x = module.in_strips(x, strips)  # type: ignore[operator]
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

    def in_strips(self, z_1CHW: Tensor) -> Tensor:
        """What `forward` gives for one picture, with less memory and on a CPU sooner."""
        strips = Strips()
        h = strips.begin(self.conv_in(z_1CHW))
        h = chain_in_strips([*self.mid, *self.conv_blocks], h, strips)
        return strips.finish(h, self.norm_out, self.conv_out)


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
        book_NE = self.quantize.vectors()

        def before_decoder(codes_BT: Tensor) -> Tensor:
            return self.post_quant_conv(book_NE[codes_BT].transpose(1, 2).unflatten(2, grid))

        if not suits(book_NE, self.decoder):
            return self.decoder(before_decoder(codes_BT))
        return torch.cat([self.decoder.in_strips(before_decoder(codes_1T)) for codes_1T in codes_BT.split(1)])


def to_uint8(pixels_BCHW: Tensor) -> Tensor:
    """-1..1 to 0..255, clipped, then truncated as the reference does; uint8 `[B, H, W, 3]`."""
    scaled = ((pixels_BCHW.float() + 1) / 2 * 255).clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1)
