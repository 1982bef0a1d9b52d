"""Products of few rows with large weights, which are bound by reading the weights once.

R rows, I inputs, O outputs, C columns of a tile. A weight is `[O, I]`, as in `nn.Linear`,
or codes with scales as in `quantized_weight` (those of 4 bits: int4_products.py). The weights are the large
side of the tensor cores' tiles and the rows, filled up, the small one. A program loads its first weights
while it waits for the kernel before it. (Tried, and slower: to add the residual and norm the inputs in here,
which saves two launches a layer. On an H100 a layer of Janus-Pro-1B took 68 us so, and 59 with them.)
"""

# What Triton's compiler reads is not what a checker of types takes it for.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .int4_products import multiply as multiply_int4
from .kernels import launching, swiglu
from .quantized_weight import Weight
from .row_products import exact_products

MOST_ROWS = 16
"""Up to so many rows plain weights are multiplied here, above the library's products do it."""
_ROWS = 16  # of a tile: the least that the tensor cores take
_LINE = 128  # bytes that the device's cache reads at once
_AHEAD = 1 << 14
"""Bytes of weights that a program asks into that cache while it waits for the kernel before it."""


class Tile(NamedTuple):
    """How a kernel walks: outputs of a tile, bytes of each output's weights in a turn of its loop."""

    outputs: int
    bytes: int
    warps: int = 4
    stages: int = 4


@triton.jit
def _codes(weight, n, c, COLUMNS: tl.constexpr, WHOLE: tl.constexpr):
    """Columns `c` of the outputs `n`, `[O, C]`."""
    places = weight + n[:, None] * COLUMNS + c[None, :]
    if WHOLE:
        return tl.load(places)
    return tl.load(places, mask=(c < COLUMNS)[None, :], other=0.0)


@triton.jit
def _ask_ahead(weight, n, first, COLUMNS: tl.constexpr, LINES: tl.constexpr, STEP: tl.constexpr):
    """Asks for some lines of the outputs `n`, from column `first` on."""
    places = (
        weight + n[:, None] * COLUMNS + tl.minimum(first + tl.arange(0, LINES) * STEP, COLUMNS - 1)[None, :]
    )
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [places.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _add(
    acc,
    codes,
    x,
    r,
    first,
    R,
    COLUMNS: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`acc [O, R]` and the product of codes `[O, C]`, whose columns begin at `first`, with their inputs."""
    kept: tl.constexpr = tl.float32 if EXACT else x.dtype.element_ty
    c = first + tl.arange(0, BLOCK_C)
    known = (r < R)[None, :] & (c < COLUMNS)[:, None]
    rows = tl.load(x + r[None, :] * COLUMNS + c[:, None], mask=known, other=0.0)
    return tl.dot(codes.to(kept), rows.to(kept), acc, input_precision="ieee")


@triton.jit(do_not_specialize=["R"])
def _product(
    x,
    weight,
    scale,
    out,
    R,
    O: tl.constexpr,  # noqa: E741
    COLUMNS: tl.constexpr,
    SCALED: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GATED: tl.constexpr,
    LINES: tl.constexpr,
    STEP: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Some outputs of a tile of rows. GATED: the weight is gates over ups, and out is `silu(gate) * up`."""
    whole: tl.constexpr = COLUMNS % BLOCK_C == 0
    n = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    mine = tl.minimum(n, O - 1).to(tl.int64)  # a last tile that sticks out computes a row twice
    c = tl.arange(0, BLOCK_C)
    codes = _codes(weight, mine, c, COLUMNS, whole)
    others = codes
    if GATED:
        others = _codes(weight, mine + O, c, COLUMNS, whole)
    if EARLY:
        if LINES > 0:
            _ask_ahead(weight, mine, BLOCK_C, COLUMNS, LINES, STEP)
            if GATED:
                _ask_ahead(weight, mine + O, BLOCK_C, COLUMNS, LINES, STEP)
        gdc_wait()
        gdc_launch_dependents()
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    kind = out.dtype.element_ty
    acc = tl.zeros([BLOCK_O, BLOCK_R], tl.float32)
    ups = acc
    acc = _add(acc, codes, x, r, 0, R, COLUMNS, EXACT, BLOCK_C)
    if GATED:
        ups = _add(ups, others, x, r, 0, R, COLUMNS, EXACT, BLOCK_C)
    for first in range(BLOCK_C, COLUMNS, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        codes = _codes(weight, mine, c, COLUMNS, whole)
        acc = _add(acc, codes, x, r, first, R, COLUMNS, EXACT, BLOCK_C)
        if GATED:
            others = _codes(weight, mine + O, c, COLUMNS, whole)
            ups = _add(ups, others, x, r, first, R, COLUMNS, EXACT, BLOCK_C)
    if SCALED:
        acc *= tl.load(scale + mine).to(tl.float32)[:, None]
        if GATED:
            ups *= tl.load(scale + mine + O).to(tl.float32)[:, None]
    if GATED:
        gate = acc.to(kind).to(tl.float32)
        opened = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)
        acc = opened * ups.to(kind).to(tl.float32)
    tl.store(out + r[None, :] * O + n[:, None], acc.to(kind), mask=(r < R)[None, :] & (n < O)[:, None])


def plan_tile(kind: str, inputs: int, outputs: int, gated: bool) -> Tile:
    """Tiles for a product of `outputs` outputs, each of one weight row, or two where they are gated.

    The quickest of some thirty of each in steps of Janus-Pro-1B and 7B on an H100, tried in their place: a
    product that is small alone loads while others compute.
    """
    plain = kind == "plain"
    if gated:
        return Tile(32, 256, stages=3)
    if outputs > inputs:  # queries, keys and values
        return Tile(64, 256) if plain and outputs >= 8192 else Tile(32, 256, stages=5)
    if outputs < inputs:
        return Tile(16, 1024, stages=5) if outputs < 4096 else Tile(32, 512, stages=5)
    if outputs < 2048:
        return Tile(16, 512)
    return Tile(64 if plain else 32, 512)


def _launch(x_RI: Tensor, weight: Weight, gated: bool) -> Tensor:
    rows, columns = x_RI.shape
    codes = weight.codes
    outputs = len(codes) // (2 if gated else 1)
    tile = plan_tile(weight.kind, columns, outputs, gated)
    out = x_RI.new_empty(rows, outputs)
    lines = min(_AHEAD // ((2 if gated else 1) * tile.outputs * _LINE), columns * codes.itemsize // _LINE)
    _product[(triton.cdiv(outputs, tile.outputs), triton.cdiv(rows, _ROWS))](
        x_RI.contiguous(),
        codes,
        codes if weight.scale is None else weight.scale,
        out,
        rows,
        O=outputs,
        COLUMNS=columns,
        SCALED=weight.scale is not None,
        EXACT=exact_products(x_RI.dtype),
        BLOCK_R=_ROWS,
        BLOCK_O=tile.outputs,
        BLOCK_C=min(max(32, tile.bytes // codes.itemsize), max(32, triton.next_power_of_2(columns))),
        GATED=gated,
        LINES=0 if lines < 1 else 1 << (lines.bit_length() - 1),
        STEP=_LINE // codes.itemsize,
        num_warps=tile.warps,
        num_stages=tile.stages if x_RI.dtype != torch.float32 else 2,
        **launching(out),
    )
    return out


def serves(x_RI: Tensor, weight: Weight) -> bool:
    """Whether `_product` takes these rows: few, in half precision, of whole sixteens of inputs; or codes."""
    if weight.kind != "plain":
        return weight.kind != "int4"
    return len(x_RI) <= MOST_ROWS and x_RI.dtype != torch.float32 and x_RI.shape[1] % 16 == 0


def product(x_RI: Tensor, weight: Weight) -> Tensor:
    """`F.linear`, `[R, O]`."""
    if serves(x_RI, weight):
        return _launch(x_RI, weight, False)
    return multiply_int4(x_RI, weight) if weight.kind == "int4" else F.linear(x_RI, weight.codes)


def gated_product(x_RI: Tensor, weight: Weight) -> Tensor:
    """`silu(gate) * up` of a weight that holds the gates' rows and then the ups', `[R, O / 2]`."""
    return _launch(x_RI, weight, True) if serves(x_RI, weight) else swiglu(product(x_RI, weight))
