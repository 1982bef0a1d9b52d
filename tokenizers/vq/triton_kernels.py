"""Triton kernels of the image tokenizer's decoder: sums of maps, group norms with SiLU, and doubled maps.

The modules of vq.py stay the definition. A norm takes three launches: parts of the statistics by many blocks,
their union, and what is written. Sums are in float32 and of deviations, so that no mean is too large.

B pictures, P places of a feature map, S parts of the places, C channels, G groups of a norm. Maps are
channels-last, `[B, P, C]` in memory.
"""

# What Triton's compiler reads is not what a checker of types takes it for.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from ...blocks.kernels.pdl import pdl_options, wait_then_trigger

_COLUMNS = 128
"""Channels of a map that a block has, at most."""
_NUMBERS, _SUMMED = 4096, 2048
"""Of a map, that a block writes; and that it takes statistics of at a time."""
_BLOCKS = 768
"""That take the statistics of a picture, at most: as many as a large GPU holds, whatever the batch."""
_UNITED = 4096  # statistics that a block unites at a time


@triton.jit
def _statistics(
    y,
    past,
    bias,
    total,
    parts,
    places,
    steps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WRITES: tl.constexpr,
    BIASED: tl.constexpr,
    ADDS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Mean and summed squares of deviations of each channel over `steps` tiles. With WRITES they are those of
    `y + bias + past`, which goes into `total`."""
    part, b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    row = tl.arange(0, ROWS)[:, None]
    bias_C = tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32) if BIASED else 0.0
    mean = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    square = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    first = part * steps * ROWS
    wait_then_trigger(PDL)
    for step in range(steps):
        place = first + step * ROWS + row
        inside = (place < places) & (channel < C)
        at = (b * places + place) * C + channel
        number = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        if WRITES:
            number += bias_C
            if ADDS:
                number += tl.load(past + at, mask=inside, other=0.0).to(tl.float32)
            rounded = number.to(total.dtype.element_ty)
            tl.store(total + at, rounded, mask=inside)
            number = rounded.to(tl.float32)
        # Each place of the tile has statistics of its own, of as many numbers as there were steps.
        away = tl.where(inside, number - mean, 0.0)
        mean += away * (1.0 / (step + 1))
        square += away * tl.where(inside, number - mean, 0.0)
    count = tl.minimum(tl.maximum((places - first - row + ROWS - 1) // ROWS, 0), steps).to(tl.float32)
    whole = tl.sum(count * mean, axis=0, keep_dims=True) / tl.sum(count)
    square = tl.sum(square + count * (mean - whole) * (mean - whole), axis=0, keep_dims=True)
    at = (b * tl.num_programs(0) + part) * 2 * C + channel
    tl.store(parts + at, whole, mask=channel < C)
    tl.store(parts + at + C, square, mask=channel < C)


@triton.jit
def _unite(
    parts,
    bias,
    gain,
    offset,
    dials,
    eps,
    places,
    span,
    count,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    BIASED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Of one group of `WIDTH` channels: by what each channel is multiplied, and what is added then. With
    BIASED, the statistics are those of what lacks `bias`."""
    g, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    member = tl.arange(0, PADDED)[None, :]
    inside, channel = member < WIDTH, g * WIDTH + member
    bias_C = tl.zeros([1, PADDED], dtype=tl.float32)
    if BIASED:
        bias_C += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    gain_C = tl.load(gain + channel, mask=inside, other=0.0).to(tl.float32)
    offset_C = tl.load(offset + channel, mask=inside, other=0.0).to(tl.float32)
    number = tl.arange(0, PARTS)[:, None]
    wait_then_trigger(PDL)
    found = parts + b * count * 2 * C + channel
    total = tl.zeros([PARTS, PADDED], dtype=tl.float32)
    for start in range(0, count, PARTS):
        part = start + number
        share = tl.minimum(tl.maximum(places - part * span, 0), span).to(tl.float32) / places
        mean = tl.load(found + part * 2 * C, mask=inside & (part < count), other=0.0)
        total += share * (mean + bias_C)
    middle = tl.sum(tl.sum(total, axis=1), axis=0) / WIDTH
    total = tl.zeros([PARTS, PADDED], dtype=tl.float32)
    for start in range(0, count, PARTS):
        part = start + number
        there = inside & (part < count)
        share = tl.minimum(tl.maximum(places - part * span, 0), span).to(tl.float32) / places
        mean = tl.load(found + part * 2 * C, mask=there, other=0.0)
        square = tl.load(found + part * 2 * C + C, mask=there, other=0.0)
        away = tl.where(there, mean + bias_C - middle, 0.0)
        total += square / places + share * away * away
    variance = tl.sum(tl.sum(total, axis=1), axis=0) / WIDTH
    scale_C = gain_C * tl.rsqrt(variance + eps)
    at = b * 2 * C + channel
    tl.store(dials + at, scale_C, mask=inside)
    tl.store(dials + at + C, (bias_C - middle) * scale_C + offset_C, mask=inside)


@triton.jit
def _own(places, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A block's picture, places `[P, 1]`, channels `[1, C]`, which numbers there are, and where, `[P, C]`."""
    b = tl.program_id(2).to(tl.int64)
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (place < places) & (channel < C)
    return b, place, channel, inside, (b * places + place) * C + channel


@triton.jit
def _scale(
    x,
    dials,
    out,
    places,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SILU: tl.constexpr,
    PDL: tl.constexpr,
):
    b, _, channel, inside, at = _own(places, C, ROWS, COLUMNS)
    wait_then_trigger(PDL)
    scale = tl.load(dials + b * 2 * C + channel, mask=channel < C, other=0.0)
    shift = tl.load(dials + b * 2 * C + C + channel, mask=channel < C, other=0.0)
    number = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * scale + shift
    if SILU:
        number = number / (1.0 + tl.exp(-number))
    tl.store(out + at, number.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _double(
    y,
    past,
    bias,
    out,
    places,
    width,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BIASED: tl.constexpr,
    ADDS: tl.constexpr,
    PDL: tl.constexpr,
):
    """`y + bias + past`, each place of which becomes 2 x 2."""
    b, place, channel, inside, at = _own(places, C, ROWS, COLUMNS)
    bias_C = tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32) if BIASED else 0.0
    wait_then_trigger(PDL)
    number = tl.load(y + at, mask=inside, other=0.0).to(tl.float32) + bias_C
    if ADDS:
        number += tl.load(past + at, mask=inside, other=0.0).to(tl.float32)
    rounded = number.to(out.dtype.element_ty)
    above = b * 4 * places + (place // width) * 4 * width + (place % width) * 2
    for corner in tl.static_range(4):
        there = above + (corner // 2) * 2 * width + corner % 2
        tl.store(out + there * C + channel, rounded, mask=inside)


def _tile(channels: int, numbers: int) -> dict[str, int]:
    columns = min(triton.next_power_of_2(channels), _COLUMNS)
    return {"C": channels, "ROWS": numbers // columns, "COLUMNS": columns}


def _grid(x_BCHW: Tensor, tile: dict[str, int]) -> tuple[int, int, int]:
    pictures, channels, height, width = x_BCHW.shape
    return triton.cdiv(height * width, tile["ROWS"]), triton.cdiv(channels, tile["COLUMNS"]), pictures


def _terms(y: Tensor, past: Tensor | None, bias: Tensor | None) -> tuple[Tensor, ...]:
    """What kernels get; they do not read what is not there."""
    return y, y if past is None else past, y if bias is None else bias


Statistics = tuple[Tensor, int]
"""Mean and summed squares of deviations of each channel in each part, `[B, S, 2, C]`; places of a part."""


def statistics(
    y_BCHW: Tensor, bias_C: Tensor | None = None, past_BCHW: Tensor | None = None, *, writes: bool = False
) -> Statistics:
    """Statistics of `y`; or with `writes`, of `y + bias + past`, which is written over `y`."""
    pictures, channels, height, width = y_BCHW.shape
    tile = _tile(channels, _SUMMED)
    tiles, across, _ = _grid(y_BCHW, tile)
    steps = triton.cdiv(tiles * across, _BLOCKS)
    count = triton.cdiv(tiles, steps)
    parts = torch.empty(pictures, count, 2, channels, dtype=torch.float32, device=y_BCHW.device)
    _statistics[(count, across, pictures)](
        *_terms(y_BCHW, past_BCHW, bias_C),
        y_BCHW,
        parts,
        height * width,
        steps,
        **tile,
        WRITES=writes,
        BIASED=bias_C is not None,
        ADDS=past_BCHW is not None,
        **pdl_options(y_BCHW),
    )
    return parts, steps * tile["ROWS"]


def normed(
    x_BCHW: Tensor,
    found: Statistics,
    norm: nn.GroupNorm,
    bias_C: Tensor | None = None,
    *,
    silu: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """`silu(norm(x + bias))` by the statistics of `x`, into `out`, which may be `x`."""
    pictures, channels, height, width = x_BCHW.shape
    (parts_BS2C, span), group = found, channels // norm.num_groups
    count, padded = parts_BS2C.shape[1], triton.next_power_of_2(group)
    dials_B2C = parts_BS2C.new_empty(pictures, 2, channels)
    _unite[(norm.num_groups, pictures)](
        parts_BS2C,
        norm.weight if bias_C is None else bias_C,
        norm.weight,
        norm.bias,
        dials_B2C,
        norm.eps,
        height * width,
        span,
        count,
        C=channels,
        WIDTH=group,
        PADDED=padded,
        PARTS=min(triton.next_power_of_2(count), _UNITED // padded),
        BIASED=bias_C is not None,
        **pdl_options(x_BCHW),
    )
    out = torch.empty_like(x_BCHW) if out is None else out
    tile = _tile(channels, _NUMBERS) | {"SILU": silu}
    _scale[_grid(x_BCHW, tile)](x_BCHW, dials_B2C, out, height * width, **tile, **pdl_options(x_BCHW))
    return out


def doubled(y_BCHW: Tensor, bias_C: Tensor | None = None, past_BCHW: Tensor | None = None) -> Tensor:
    """`y + bias + past` with every place doubled in both directions, `[B, C, 2 H, 2 W]`."""
    pictures, channels, height, width = y_BCHW.shape
    out = y_BCHW.new_empty(pictures, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
    tile = _tile(channels, _NUMBERS)
    _double[_grid(y_BCHW, tile)](
        *_terms(y_BCHW, past_BCHW, bias_C),
        out,
        height * width,
        width,
        **tile,
        BIASED=bias_C is not None,
        ADDS=past_BCHW is not None,
        **pdl_options(y_BCHW),
    )
    return out
