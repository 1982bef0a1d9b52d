"""Products of few rows with large weights, which are bound by reading the weights once.

R rows, I inputs, O outputs, C columns of a tile, as they are stored: inputs, or bytes of two inputs each in
int4. A weight is `[O, I]`, as in `nn.Linear`, or codes with scales as in `quantized_weight`. The weights are
the large side of the tensor cores' tiles and the rows, filled up, the small one. A program loads its first
weights while it waits for the kernel before it.

RMSNorm needs no launch of its own between two products. The first adds the residual, multiplies by the norm's
weight and leaves each program's sum of squares; the second multiplies its sums by the root that follows from
these. (Tried, and slower: to norm the inputs as they are read, for each program norms all of them.)
"""

# What Triton's compiler reads is not what a checker of types takes it for:
# pyright: reportArgumentType=false, reportCallIssue=false

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from .kernels import swiglu
from .overlap import launching
from .product_kernel import product_kernel
from .product_tiles import MOST_ROWS, Tile, plan_tile
from .quantized_weight import Weight, decode
from .row_products import exact_products

_LEAST_GROUP = 16  # inputs that share a scale: as many as the tensor cores add at once
_LINE = 128  # bytes that the device's cache reads at once
_AHEAD = 1 << 14
"""Bytes of weights that a program asks into that cache while it waits for the kernel before it."""


class Normed(NamedTuple):
    """The inputs of a product: normed rows `[R, I]`; or, with sums of squares of P parts of each row before
    the norm `[P, R]`, float32, rows that are still to be divided by the root of their mean, plus `eps`."""

    rows: Tensor
    squares: Tensor | None = None
    eps: float = 0.0


def _columns(weight: Weight, tile: Tile) -> int:
    """Columns that a turn of the loop takes: in int4 those of a group."""
    columns = weight.codes.shape[1]
    if weight.kind == "int4":
        assert weight.scale is not None
        return columns // weight.scale.shape[1]
    return min(max(32, tile.bytes // weight.codes.itemsize), max(32, triton.next_power_of_2(columns)))


class _Sum(NamedTuple):
    """What a product is added to, the weight of the norm of the sum, and where the sum and parts go."""

    residual: Tensor
    gain: Tensor
    total: Tensor
    parts: Tensor


def _launch(x: Normed, weight: Weight, gated: bool, added: _Sum | None = None) -> Tensor:
    rows, codes = len(x.rows), weight.codes
    columns = codes.shape[1]
    outputs = len(codes) // (2 if gated else 1)
    tile = plan_tile(weight.kind, x.rows.shape[1], outputs, gated, rows)
    out = x.rows.new_empty(rows, outputs)
    lines = min(_AHEAD // ((2 if gated else 1) * tile.outputs * _LINE), columns * codes.itemsize // _LINE)
    count = 0 if x.squares is None else len(x.squares)
    product_kernel[(triton.cdiv(outputs, tile.outputs), triton.cdiv(rows, tile.rows))](
        x.rows.contiguous(),
        codes,
        codes if weight.scale is None else weight.scale,
        codes if weight.zero is None else weight.zero,
        out,
        out if x.squares is None else x.squares,
        *(added or (out, out, out, out)),
        count,
        x.eps,
        rows,
        O=outputs,
        COLUMNS=columns,
        KIND=weight.kind,
        EXACT=exact_products(out.dtype),
        FLIP=tile.flip,
        BLOCK_R=tile.rows,
        BLOCK_O=tile.outputs,
        BLOCK_C=_columns(weight, tile),
        GATED=gated,
        PARTS=triton.next_power_of_2(count) if count else 0,
        ADDS=added is not None,
        LINES=0 if lines < 1 else 1 << (lines.bit_length() - 1),
        STEP=_LINE // codes.itemsize,
        num_warps=tile.warps,
        num_stages=tile.stages if out.dtype != torch.float32 else 2,
        **launching(out),
    )
    return out


def serves(x_RI: Tensor, weight: Weight) -> bool:
    """Whether the kernel takes these rows: few, in half precision, of whole sixteens of inputs; or codes,
    whose groups are not too small."""
    if weight.kind == "int4":
        assert weight.scale is not None
        return x_RI.shape[1] // weight.scale.shape[1] >= _LEAST_GROUP
    if weight.kind != "plain":
        return True
    return len(x_RI) <= MOST_ROWS and x_RI.dtype != torch.float32 and x_RI.shape[1] % 16 == 0


def product(x: Tensor | Normed, weight: Weight) -> Tensor:
    """`F.linear`, `[R, O]`. Rows with squares are for weights that `serves` takes."""
    x = x if isinstance(x, Normed) else Normed(x)
    if serves(x.rows, weight):
        return _launch(x, weight, False)
    assert x.squares is None
    if weight.scale is None:
        return F.linear(x.rows, weight.codes)
    return F.linear(x.rows, decode(weight.codes, weight.scale, weight.zero, x.rows.dtype))


def gated_product(x: Tensor | Normed, weight: Weight) -> Tensor:
    """`silu(gate) * up` of a weight that holds the gates' rows and then the ups', `[R, O / 2]`."""
    x = x if isinstance(x, Normed) else Normed(x)
    return _launch(x, weight, True) if serves(x.rows, weight) else swiglu(product(x, weight))


def adds(x_RI: Tensor, weight: Weight) -> bool:
    """Whether `add_product` takes this: rows times a norm's weight, not normed yet, can be too large for
    float16."""
    return serves(x_RI, weight) and x_RI.dtype != torch.float16


def add_product(
    x_RI: Tensor, weight: Weight, residual_RO: Tensor, gain: Tensor, eps: float
) -> tuple[Tensor, Normed]:
    """`residual + F.linear(x)`, `[R, O]`, and its RMSNorm with weight `gain` for what `serves` takes."""
    tile = plan_tile(weight.kind, x_RI.shape[1], len(weight.codes), False, len(x_RI))
    total = torch.empty_like(residual_RO)
    parts = total.new_empty(triton.cdiv(total.shape[1], tile.outputs), len(total), dtype=torch.float32)
    out = _launch(Normed(x_RI), weight, False, _Sum(residual_RO.contiguous(), gain, total, parts))
    return total, Normed(out, parts, eps)
