"""Parts of Triton kernels: products of few rows with a tile of a weight that is plain, int8, fp8 or int4.

A weight is read once, from where it lies: `[O, I]` numbers of the rows' dtype, or codes with scales as in
`quantized_weight`; sums are in float32. R rows, O outputs of a tile, I inputs, C columns as they are stored
(bytes of two inputs each in int4, else inputs), G groups of inputs that share an int4 scale.

`few` multiplies and adds for one row, at the speed of memory. `many` takes up to 16 rows through the
tensor cores, for little more than one costs.
"""

# What Triton compiles is not what its Python types say:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportCallIssue=false

import os
from dataclasses import dataclass
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..model.quantized_linear import QuantizedWeight, group_size

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, as tests on the CPU let them."""

ROWS = 16  # of a tile of `many`


@dataclass(frozen=True)
class Operand:
    """A weight as kernels take it: numbers or codes, scale and zero (the numbers again, where there is none),
    its kind, and half the inputs of a group."""

    numbers: Tensor
    scale: Tensor
    zero: Tensor
    kind: str
    half: int

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.numbers, self.scale, self.zero


def as_operand(weight: Tensor | QuantizedWeight) -> Operand:
    if isinstance(weight, Tensor):
        return Operand(weight, weight, weight, "plain", 1)
    if weight.zero is None:
        return Operand(weight.codes, weight.scale, weight.scale, weight.kind, 1)
    return Operand(weight.codes, weight.scale, weight.zero, weight.kind, group_size(weight.inputs) // 2)


def loop_sizes(inputs: int, kind: str, many: bool) -> dict[str, int]:
    """How a kernel walks along the inputs: `BLOCK_C` columns at a time, `UNROLL` times in a turn of the loop,
    so that many loads are under way at once (`many` leaves that to Triton's pipelining)."""
    columns = inputs // 2 if kind == "int4" else inputs
    block = gcd(columns, 128 if many else 256)
    if block < (64 if many else 128):
        block = min(max(triton.next_power_of_2(columns), 32), 128)
    if many:
        return {"BLOCK_C": block, "UNROLL": 1}
    blocks = -(-columns // block)
    most = min(blocks, 1536 // block)
    even = max(times for times in range(1, most + 1) if blocks % times == 0)
    return {"BLOCK_C": block, "UNROLL": even if 2 * even > most else most}


def exact_products(dtype: torch.dtype) -> bool:
    """Whether operands of products go through float32. The interpreter multiplies the bits of bfloat16."""
    return INTERPRETED or dtype == torch.float32


@triton.jit
def _pairs(x_ptr, start, columns, BLOCK_C: tl.constexpr):
    """Even and odd inputs of a row from column `start` on, `[C]` each, float32."""
    places = 2 * start + tl.arange(0, 2 * BLOCK_C)
    x = tl.load(x_ptr + places, mask=places < 2 * columns, other=0.0).to(tl.float32)
    return tl.split(tl.reshape(x, (BLOCK_C, 2)))


@triton.jit
def _int4_sums(even, odd, low, high, scale, zero, TILE: tl.constexpr, G: tl.constexpr, HALF: tl.constexpr):
    """What a tile of bytes `[O, C]` adds to a row's outputs, `[O]`."""
    products = tl.reshape(low * even[None, :] + high * odd[None, :], (TILE, G, HALF))
    inputs = tl.sum(tl.reshape(even + odd, (G, HALF)), axis=1)
    return tl.sum(tl.sum(products, axis=2) * scale + zero * inputs[None, :], axis=1)


@triton.jit
def few(
    x_ptr,
    w_ptr,
    scale_ptr,
    zero_ptr,
    outs,
    stride,
    groups,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """A row `x` by weight rows `outs`, `[O]`. `stride`: columns from one weight row to the next, `groups`:
    scales."""
    whole: tl.constexpr = COLUMNS % (BLOCK_C * UNROLL) == 0
    G: tl.constexpr = BLOCK_C // HALF
    nothing: tl.constexpr = 0.0 if KIND == "fp8" else 0  # no integer becomes a float8
    if KIND == "int4":
        sums = tl.zeros([BLOCK_O], dtype=tl.float32)
    else:
        sums = tl.zeros([BLOCK_O, BLOCK_C], dtype=tl.float32)
    for turn in range(0, COLUMNS, BLOCK_C * UNROLL):
        for step in tl.static_range(UNROLL):
            start = turn + step * BLOCK_C
            columns = start + tl.arange(0, BLOCK_C)
            places = w_ptr + outs[:, None] * stride + columns[None, :]
            # Every weight row loads the inputs for itself: from the nearest cache, but in its own layout.
            at = tl.zeros([BLOCK_O, 1], dtype=tl.int32) + columns[None, :]
            if whole:
                w = tl.load(places)
            else:
                w = tl.load(places, mask=at < COLUMNS, other=nothing)
            if KIND == "int4":
                low, high = (w & 15).to(tl.float32) - 8.0, (w >> 4).to(tl.float32) - 8.0
                group = start // HALF + tl.arange(0, G)
                there = (group < COLUMNS // HALF)[None, :]
                mine = outs[:, None] * groups + group[None, :]
                scale = tl.load(scale_ptr + mine, mask=there, other=0.0).to(tl.float32)
                zero = tl.load(zero_ptr + mine, mask=there, other=0.0).to(tl.float32)
                even, odd = _pairs(x_ptr, start, COLUMNS, BLOCK_C)
                sums += _int4_sums(even, odd, low, high, scale, zero, BLOCK_O, G, HALF)
            else:
                x = tl.load(x_ptr + at, mask=at < COLUMNS, other=0.0).to(tl.float32)
                sums += w.to(tl.float32) * x
    if KIND != "int4":
        sums = tl.sum(sums, axis=1)
    if KIND == "int8" or KIND == "fp8":
        sums *= tl.load(scale_ptr + outs).to(tl.float32)
    return sums


@triton.jit
def many(
    x_ptr,
    rows,
    live,
    w_ptr,
    scale_ptr,
    zero_ptr,
    outs,
    stride,
    groups,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    HALF: tl.constexpr,
    EXACT: tl.constexpr,
    R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Rows `rows` of `x` where `live` by weight rows `outs`, `[R, O]`."""
    G: tl.constexpr = BLOCK_C // HALF
    nothing: tl.constexpr = 0.0 if KIND == "fp8" else 0  # no integer becomes a float8
    inputs: tl.constexpr = 2 * COLUMNS if KIND == "int4" else COLUMNS
    kept: tl.constexpr = tl.float32 if EXACT else x_ptr.dtype.element_ty
    sums = tl.zeros([R, BLOCK_O], dtype=tl.float32)
    for start in range(0, COLUMNS, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        there = columns < COLUMNS
        places = w_ptr + outs[:, None] * stride + columns[None, :]
        if COLUMNS % BLOCK_C == 0:
            w = tl.load(places)
        else:
            w = tl.load(places, mask=there[None, :], other=nothing)
        mask = live[:, None] & there[None, :]
        if KIND == "int4":
            group = start // HALF + tl.arange(0, G)
            known = (group < COLUMNS // HALF)[None, :]
            at = outs[:, None] * groups + group[None, :]
            scale = tl.load(scale_ptr + at, mask=known, other=0.0).to(tl.float32)[:, :, None]
            zero = tl.load(zero_ptr + at, mask=known, other=0.0).to(tl.float32)[:, :, None]
            shape: tl.constexpr = (BLOCK_O, G, HALF)
            low = tl.reshape((w & 15).to(tl.float32) - 8.0, shape) * scale + zero
            high = tl.reshape((w >> 4).to(tl.float32) - 8.0, shape) * scale + zero
            pairs = x_ptr + rows[:, None] * inputs + 2 * columns[None, :]
            even, odd = tl.load(pairs, mask=mask, other=0.0), tl.load(pairs + 1, mask=mask, other=0.0)
            low, high = tl.reshape(low, (BLOCK_O, BLOCK_C)), tl.reshape(high, (BLOCK_O, BLOCK_C))
            sums = tl.dot(even.to(kept), tl.trans(low.to(kept)), sums, input_precision="ieee")
            sums = tl.dot(odd.to(kept), tl.trans(high.to(kept)), sums, input_precision="ieee")
        else:
            x = tl.load(x_ptr + rows[:, None] * inputs + columns[None, :], mask=mask, other=0.0)
            sums = tl.dot(x.to(kept), tl.trans(w.to(kept)), sums, input_precision="ieee")
    if KIND == "int8" or KIND == "fp8":
        sums *= tl.load(scale_ptr + outs).to(tl.float32)[None, :]
    return sums
