"""Products of few rows with large weights, which are bound by reading the weights once.

R rows, I inputs, O outputs, C columns of a weight as it is stored (bytes of two inputs each in int4, else
inputs), G groups of inputs that share an int4 scale. A weight is `[O, I]`, as in `nn.Linear`, or codes with
scales as in `quantized_weight`. The weights are the large side of the tensor cores' tiles and the rows,
filled up, the small one. A program loads its first weights while it waits for the kernel before it.
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

from .kernels import launching, swiglu
from .quantized_weight import Weight, group_size
from .row_products import exact_products

MOST_ROWS = 16
"""Up to so many rows plain weights are multiplied here, above the library's products do it."""
_ROWS = 16  # of a tile: the least that the tensor cores take
_PROGRAMS = 128  # tiles are made as large as leaves so many: one for each processor of a large GPU


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
    return tl.load(places, mask=(c < COLUMNS)[None, :], other=0)


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
    zero,
    out,
    R,
    O: tl.constexpr,  # noqa: E741
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    HALF: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GATED: tl.constexpr,
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
        gdc_wait()
        gdc_launch_dependents()
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    kind = out.dtype.element_ty
    acc = tl.zeros([BLOCK_O, BLOCK_R], tl.float32)
    ups = acc
    acc = _add(acc, codes, x, scale, zero, mine, r, 0, R, COLUMNS, KIND, HALF, EXACT, BLOCK_O, BLOCK_C)
    if GATED:
        ups = _add(
            ups, others, x, scale, zero, mine + O, r, 0, R, COLUMNS, KIND, HALF, EXACT, BLOCK_O, BLOCK_C
        )
    for first in range(BLOCK_C, COLUMNS, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        codes = _codes(weight, mine, c, COLUMNS, whole)
        acc = _add(
            acc, codes, x, scale, zero, mine, r, first, R, COLUMNS, KIND, HALF, EXACT, BLOCK_O, BLOCK_C
        )
        if GATED:
            others = _codes(weight, mine + O, c, COLUMNS, whole)
            ups = _add(
                ups, others, x, scale, zero, mine + O, r, first,
                R, COLUMNS, KIND, HALF, EXACT, BLOCK_O, BLOCK_C,
            )  # fmt: skip
    if KIND == "int8":
        acc *= tl.load(scale + mine).to(tl.float32)[:, None]
        if GATED:
            ups *= tl.load(scale + mine + O).to(tl.float32)[:, None]
    if GATED:
        gate = acc.to(kind).to(tl.float32)
        opened = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)
        acc = opened * ups.to(kind).to(tl.float32)
    tl.store(out + r[None, :] * O + n[:, None], acc.to(kind), mask=(r < R)[None, :] & (n < O)[:, None])


def plan_tile(kind: str, outputs: int, gated: bool) -> Tile:
    """Tiles for a product of `outputs` outputs, each of one weight row, or two where they are gated."""
    block = next((b for b in (64, 32) if outputs >= _PROGRAMS * b), 16)
    return Tile(block, 512 if block < 64 else 256)


def _launch(x_RI: Tensor, weight: Weight, gated: bool) -> Tensor:
    rows, inputs = x_RI.shape
    codes, kind = weight.codes, weight.kind
    outputs, columns = len(codes) // (2 if gated else 1), codes.shape[1]
    tile = plan_tile(kind, outputs, gated)
    least = max(32, tile.bytes // codes.itemsize)
    out = x_RI.new_empty(rows, outputs)
    _product[(triton.cdiv(outputs, tile.outputs), triton.cdiv(rows, _ROWS))](
        x_RI.contiguous(),
        codes,
        codes if weight.scale is None else weight.scale,
        codes if weight.zero is None else weight.zero,
        out,
        rows,
        O=outputs,
        COLUMNS=columns,
        KIND=kind,
        HALF=group_size(inputs) // 2 if kind == "int4" else 1,
        EXACT=exact_products(x_RI.dtype),
        BLOCK_R=_ROWS,
        BLOCK_O=tile.outputs,
        BLOCK_C=min(least, max(32, triton.next_power_of_2(columns))),
        GATED=gated,
        num_warps=tile.warps,
        num_stages=tile.stages if x_RI.dtype != torch.float32 else 2,
        **launching(out),
    )
    return out


def serves(x_RI: Tensor, weight: Weight) -> bool:
    """Whether the kernels take these rows: few, in half precision, of whole sixteens of inputs; or codes."""
    if weight.kind != "plain":
        return True
    return len(x_RI) <= MOST_ROWS and x_RI.dtype != torch.float32 and x_RI.shape[1] % 16 == 0


def product(x_RI: Tensor, weight: Weight) -> Tensor:
    """`F.linear`, `[R, O]`."""
    return _launch(x_RI, weight, False) if serves(x_RI, weight) else F.linear(x_RI, weight.codes)


def gated_product(x_RI: Tensor, weight: Weight) -> Tensor:
    """`silu(gate) * up` of a weight that holds the gates' rows and then the ups', `[R, O / 2]`."""
    if serves(x_RI, weight):
        return _launch(x_RI, weight, True)
    return swiglu(F.linear(x_RI, weight.codes))
