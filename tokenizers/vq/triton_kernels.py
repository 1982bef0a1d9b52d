"""Triton kernels of the VQ decoder: sums of feature maps, group norms with SiLU, and doubled maps.

The modules of model.py are the definition. A norm takes three launches: partial statistics by many blocks,
their combination to a scale and a shift per channel, and applying those. Statistics are float32 sums of
deviations (Welford), so that a large mean costs no precision.

B images, P positions of a feature map, S parts of the positions, C channels, G groups of a norm. Maps are
channels-last, `[B, P, C]` in memory.
"""

# Triton's language gives names other types than a type checker infers.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...blocks.kernels.pdl import pdl_options, wait_then_trigger
from .operations import NORM_EPS, Norm

_MAX_CHANNELS = 128
"""Channels of a block's tile, at most."""
_WRITTEN_NUMEL, _REDUCED_NUMEL = 4096, 2048
"""Numbers in the tile that a block writes, and in one that it takes statistics of."""
_MAX_BLOCKS = 768
"""Blocks that share an image's statistics, at most: as many as a large GPU holds, whatever the batch."""
_COMBINED_NUMEL = 4096
"""Partial statistics that a block combines at a time."""


@triton.jit
def _statistics(
    y,
    residual,
    bias,
    total,
    partials,
    positions,
    steps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WRITES: tl.constexpr,
    BIASED: tl.constexpr,
    ADDS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Mean and summed squared deviations of each channel over `steps` tiles. With WRITES they are those of
    `y + bias + residual`, which is stored in `total`."""
    part, b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    row = tl.arange(0, ROWS)[:, None]
    bias_C = tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32) if BIASED else 0.0
    mean = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    square = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    first = part * steps * ROWS
    wait_then_trigger(PDL)
    for step in range(steps):
        position = first + step * ROWS + row
        inside = (position < positions) & (channel < C)
        at = (b * positions + position) * C + channel
        value = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        if WRITES:
            value += bias_C
            if ADDS:
                value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
            rounded = value.to(total.dtype.element_ty)
            tl.store(total + at, rounded, mask=inside)
            value = rounded.to(tl.float32)
        # Each row of the tile keeps running statistics of its own, over the steps so far.
        deviation = tl.where(inside, value - mean, 0.0)
        mean += deviation * (1.0 / (step + 1))
        square += deviation * tl.where(inside, value - mean, 0.0)
    count = tl.minimum(tl.maximum((positions - first - row + ROWS - 1) // ROWS, 0), steps).to(tl.float32)
    mean_C = tl.sum(count * mean, axis=0, keep_dims=True) / tl.sum(count)
    square = tl.sum(square + count * (mean - mean_C) * (mean - mean_C), axis=0, keep_dims=True)
    at = (b * tl.num_programs(0) + part) * 2 * C + channel
    tl.store(partials + at, mean_C, mask=channel < C)
    tl.store(partials + at + C, square, mask=channel < C)


@triton.jit
def _combine(
    partials,
    bias,
    norm_weight,
    norm_bias,
    affine,
    eps,
    positions,
    span,
    count,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    BIASED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Scale and shift of each channel of one group of `WIDTH` channels, into `affine`. With BIASED, the
    partial statistics are those of a map that still lacks `bias`."""
    g, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    member = tl.arange(0, PADDED)[None, :]
    inside, channel = member < WIDTH, g * WIDTH + member
    bias_C = tl.zeros([1, PADDED], dtype=tl.float32)
    if BIASED:
        bias_C += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    weight_C = tl.load(norm_weight + channel, mask=inside, other=0.0).to(tl.float32)
    offset_C = tl.load(norm_bias + channel, mask=inside, other=0.0).to(tl.float32)
    index = tl.arange(0, PARTS)[:, None]
    wait_then_trigger(PDL)
    first = partials + b * count * 2 * C + channel
    total = tl.zeros([PARTS, PADDED], dtype=tl.float32)
    for start in range(0, count, PARTS):
        part = start + index
        share = tl.minimum(tl.maximum(positions - part * span, 0), span).to(tl.float32) / positions
        mean = tl.load(first + part * 2 * C, mask=inside & (part < count), other=0.0)
        total += share * (mean + bias_C)
    mean_G = tl.sum(tl.sum(total, axis=1), axis=0) / WIDTH
    total = tl.zeros([PARTS, PADDED], dtype=tl.float32)
    for start in range(0, count, PARTS):
        part = start + index
        valid = inside & (part < count)
        share = tl.minimum(tl.maximum(positions - part * span, 0), span).to(tl.float32) / positions
        mean = tl.load(first + part * 2 * C, mask=valid, other=0.0)
        square = tl.load(first + part * 2 * C + C, mask=valid, other=0.0)
        deviation = tl.where(valid, mean + bias_C - mean_G, 0.0)
        total += square / positions + share * deviation * deviation
    variance = tl.sum(tl.sum(total, axis=1), axis=0) / WIDTH
    scale_C = weight_C * tl.rsqrt(variance + eps)
    at = b * 2 * C + channel
    tl.store(affine + at, scale_C, mask=inside)
    tl.store(affine + at + C, (bias_C - mean_G) * scale_C + offset_C, mask=inside)


@triton.jit
def _tile_of_block(positions, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A block's image, positions `[P, 1]` and channels `[1, C]`; which are inside, and offsets, `[P, C]`."""
    b = tl.program_id(2).to(tl.int64)
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (position < positions) & (channel < C)
    return b, position, channel, inside, (b * positions + position) * C + channel


@triton.jit
def _scale(
    x,
    affine,
    out,
    positions,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SILU: tl.constexpr,
    PDL: tl.constexpr,
):
    """`x * scale + shift` by channel, with SILU through SiLU."""
    b, _, channel, inside, at = _tile_of_block(positions, C, ROWS, COLUMNS)
    wait_then_trigger(PDL)
    scale = tl.load(affine + b * 2 * C + channel, mask=channel < C, other=0.0)
    shift = tl.load(affine + b * 2 * C + C + channel, mask=channel < C, other=0.0)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * scale + shift
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _double(
    y,
    residual,
    bias,
    out,
    positions,
    width,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BIASED: tl.constexpr,
    ADDS: tl.constexpr,
    PDL: tl.constexpr,
):
    """`y + bias + residual`, each position repeated 2 x 2."""
    b, position, channel, inside, at = _tile_of_block(positions, C, ROWS, COLUMNS)
    bias_C = tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32) if BIASED else 0.0
    wait_then_trigger(PDL)
    value = tl.load(y + at, mask=inside, other=0.0).to(tl.float32) + bias_C
    if ADDS:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    rounded = value.to(out.dtype.element_ty)
    first = b * 4 * positions + (position // width) * 4 * width + (position % width) * 2
    for corner in tl.static_range(4):
        target = first + (corner // 2) * 2 * width + corner % 2
        tl.store(out + target * C + channel, rounded, mask=inside)


def _tile(channels: int, numel: int) -> dict[str, int]:
    columns = min(triton.next_power_of_2(channels), _MAX_CHANNELS)
    return {"C": channels, "ROWS": numel // columns, "COLUMNS": columns}


def _grid(x_BCHW: Tensor, tile: dict[str, int]) -> tuple[int, int, int]:
    images, channels, height, width = x_BCHW.shape
    return triton.cdiv(height * width, tile["ROWS"]), triton.cdiv(channels, tile["COLUMNS"]), images


def _operands(y: Tensor, residual: Tensor | None, bias: Tensor | None) -> tuple[Tensor, ...]:
    """Kernel arguments, with `y` in place of what is None; kernels don't read it."""
    return y, y if residual is None else residual, y if bias is None else bias


Statistics = tuple[Tensor, int]
"""Mean and summed squared deviations of each channel in each part, `[B, S, 2, C]`; positions of a part."""


def statistics(
    y_BCHW: Tensor, bias_C: Tensor | None = None, residual_BCHW: Tensor | None = None, *, writes: bool = False
) -> Statistics:
    """Statistics of `y`; or with `writes`, of `y + bias + residual`, which overwrites `y`."""
    images, channels, height, width = y_BCHW.shape
    tile = _tile(channels, _REDUCED_NUMEL)
    tiles, across, _ = _grid(y_BCHW, tile)
    steps = triton.cdiv(tiles * across, _MAX_BLOCKS)
    count = triton.cdiv(tiles, steps)
    partials = torch.empty(images, count, 2, channels, dtype=torch.float32, device=y_BCHW.device)
    _statistics[(count, across, images)](
        *_operands(y_BCHW, residual_BCHW, bias_C),
        y_BCHW,
        partials,
        height * width,
        steps,
        **tile,
        WRITES=writes,
        BIASED=bias_C is not None,
        ADDS=residual_BCHW is not None,
        **pdl_options(y_BCHW),
    )
    return partials, steps * tile["ROWS"]


def normed(
    x_BCHW: Tensor,
    statistics: Statistics,
    norm: Norm,
    bias_C: Tensor | None = None,
    *,
    silu: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """`silu(norm(x + bias))` by the statistics of `x`, into `out`, which may be `x`."""
    images, channels, height, width = x_BCHW.shape
    (partials_BS2C, span), (norm_weight, norm_bias, groups) = statistics, norm
    group = channels // groups
    count, padded = partials_BS2C.shape[1], triton.next_power_of_2(group)
    affine_B2C = partials_BS2C.new_empty(images, 2, channels)
    _combine[(groups, images)](
        partials_BS2C,
        norm_weight if bias_C is None else bias_C,
        norm_weight,
        norm_bias,
        affine_B2C,
        NORM_EPS,
        height * width,
        span,
        count,
        C=channels,
        WIDTH=group,
        PADDED=padded,
        PARTS=min(triton.next_power_of_2(count), _COMBINED_NUMEL // padded),
        BIASED=bias_C is not None,
        **pdl_options(x_BCHW),
    )
    out = torch.empty_like(x_BCHW) if out is None else out
    tile = _tile(channels, _WRITTEN_NUMEL) | {"SILU": silu}
    _scale[_grid(x_BCHW, tile)](x_BCHW, affine_B2C, out, height * width, **tile, **pdl_options(x_BCHW))
    return out


def doubled(y_BCHW: Tensor, bias_C: Tensor | None = None, residual_BCHW: Tensor | None = None) -> Tensor:
    """`y + bias + residual` with every position doubled in both directions, `[B, C, 2 H, 2 W]`."""
    images, channels, height, width = y_BCHW.shape
    out = y_BCHW.new_empty(images, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
    tile = _tile(channels, _WRITTEN_NUMEL)
    _double[_grid(y_BCHW, tile)](
        *_operands(y_BCHW, residual_BCHW, bias_C),
        out,
        height * width,
        width,
        **tile,
        BIASED=bias_C is not None,
        ADDS=residual_BCHW is not None,
        **pdl_options(y_BCHW),
    )
    return out
