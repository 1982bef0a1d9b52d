"""Products of few rows with large weights, which are bound by reading the weights once.

R rows, I inputs, O outputs, C columns of a tile, P parts of a sum. A weight is `[O, I]`, as in `nn.Linear`,
or codes with scales as in `quantized_weight` (those of 4 bits: int4_products.py). The weights are the large
side of the tensor cores' tiles and the rows, filled up, the small one. A program loads its first weights
while it waits for the kernel before it. The sum of two branches and its norm, between two products, are made
by these: the first adds, and the second norms what it reads.
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

MOST_ROWS = 32
"""Up to so many rows plain weights are multiplied here, above the library's products do it."""
FUSED_ROWS = 16
"""Up to so many rows products norm what they read: each of their programs does it for all of them."""
_TILE_ROWS = (16, 32)  # the least that the tensor cores take, and the most


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
def _add(
    acc,
    codes,
    x,
    r,
    first,
    R,
    root,
    gain,
    COLUMNS: tl.constexpr,
    EXACT: tl.constexpr,
    NORMED: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`acc [O, R]` and the product of codes `[O, C]`, whose columns begin at `first`, with their inputs,
    which are normed first where that is asked for."""
    kind = x.dtype.element_ty
    kept: tl.constexpr = tl.float32 if EXACT else x.dtype.element_ty
    c = first + tl.arange(0, BLOCK_C)
    known = (r < R)[None, :] & (c < COLUMNS)[:, None]
    rows = tl.load(x + r[None, :] * COLUMNS + c[:, None], mask=known, other=0.0)
    if NORMED:
        gains = tl.load(gain + c, mask=c < COLUMNS, other=0.0).to(tl.float32)
        normed = (rows.to(tl.float32) * root[None, :]).to(kind).to(tl.float32)
        rows = (gains[:, None] * normed).to(kind)
    return tl.dot(codes.to(kept), rows.to(kept), acc, input_precision="ieee")


@triton.jit(do_not_specialize=["R"])
def _product(
    x,
    weight,
    scale,
    squares,
    gain,
    residual,
    out,
    out_squares,
    eps,
    R,
    O: tl.constexpr,  # noqa: E741
    COLUMNS: tl.constexpr,
    SCALED: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GATED: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_PADDED: tl.constexpr,
    ADDS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Some outputs of a tile of rows. GATED: the weight is gates over ups, and out is `silu(gate) * up`.
    PARTS: the inputs are to be normed, and the sum of their squares is in so many parts. ADDS: out is
    `residual` and the product, and `out_squares` gets this program's part of the sum of its squares."""
    whole: tl.constexpr = COLUMNS % BLOCK_C == 0
    normed: tl.constexpr = PARTS > 0
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
    root = tl.zeros([BLOCK_R], tl.float32)
    if normed:
        part = tl.arange(0, PARTS_PADDED)
        known = (r < R)[:, None] & (part < PARTS)[None, :]
        sums = tl.load(squares + r[:, None] * PARTS + part[None, :], mask=known, other=0.0)
        root = tl.rsqrt(tl.sum(sums, axis=1) / COLUMNS + eps)
    acc = tl.zeros([BLOCK_O, BLOCK_R], tl.float32)
    ups = acc
    acc = _add(acc, codes, x, r, 0, R, root, gain, COLUMNS, EXACT, normed, BLOCK_C)
    if GATED:
        ups = _add(ups, others, x, r, 0, R, root, gain, COLUMNS, EXACT, normed, BLOCK_C)
    for first in range(BLOCK_C, COLUMNS, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        codes = _codes(weight, mine, c, COLUMNS, whole)
        acc = _add(acc, codes, x, r, first, R, root, gain, COLUMNS, EXACT, normed, BLOCK_C)
        if GATED:
            others = _codes(weight, mine + O, c, COLUMNS, whole)
            ups = _add(ups, others, x, r, first, R, root, gain, COLUMNS, EXACT, normed, BLOCK_C)
    if SCALED:
        acc *= tl.load(scale + mine).to(tl.float32)[:, None]
        if GATED:
            ups *= tl.load(scale + mine + O).to(tl.float32)[:, None]
    if GATED:
        gate = acc.to(kind).to(tl.float32)
        opened = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)
        acc = opened * ups.to(kind).to(tl.float32)
    at, known = r[None, :] * O + n[:, None], (r < R)[None, :] & (n < O)[:, None]
    result = acc.to(kind)
    if ADDS:
        before = tl.load(residual + at, mask=known, other=0.0).to(tl.float32)
        result = (before + result.to(tl.float32)).to(kind)
        wide = tl.where(known, result.to(tl.float32), 0.0)
        tl.store(
            out_squares + r * tl.num_programs(0) + tl.program_id(0), tl.sum(wide * wide, axis=0), mask=r < R
        )
    tl.store(out + at, result, mask=known)


def plan_tile(kind: str, inputs: int, outputs: int, gated: bool) -> Tile:
    """Tiles for a product of `outputs` outputs, each of one weight row, or two where they are gated.

    The quickest of some thirty of each in steps of Janus-Pro-1B and 7B on an H100, tried in their place: a
    product that is small alone loads while others compute.
    """
    plain = kind == "plain"
    if gated:
        return Tile(32, 256, stages=3)
    if outputs > inputs:  # queries, keys and values
        return Tile(64, 256) if plain and outputs >= 8192 else Tile(32, 256 if plain else 128, stages=5)
    if outputs < inputs:
        return Tile(16, 1024, stages=5) if outputs < 4096 else Tile(32, 512, stages=5)
    if outputs < 2048:
        return Tile(16, 512)
    return Tile(64 if plain else 32, 512)


class Normed(NamedTuple):
    """How inputs are to be normed (norm.py): the sum of a row's squares, float32 `[R, P]` in parts, and the
    norm's weight and epsilon."""

    squares: Tensor
    gain: Tensor
    eps: float


def _launch(
    x_RI: Tensor,
    weight: Weight,
    gated: bool,
    normed: Normed | None = None,
    residual_RO: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    rows, columns = x_RI.shape
    codes = weight.codes
    outputs = len(codes) // (2 if gated else 1)
    tile = plan_tile(weight.kind, columns, outputs, gated)
    programs, least = triton.cdiv(outputs, tile.outputs), _TILE_ROWS[0]
    block_rows = least if rows <= least else _TILE_ROWS[1]
    out = x_RI.new_empty(rows, outputs)
    squares = out
    if residual_RO is not None:
        squares = torch.empty(rows, programs, dtype=torch.float32, device=out.device)
    parts = 0 if normed is None else normed.squares.shape[1]
    _product[(programs, triton.cdiv(rows, block_rows))](
        x_RI.contiguous(),
        codes,
        codes if weight.scale is None else weight.scale,
        out if normed is None else normed.squares,
        out if normed is None else normed.gain,
        out if residual_RO is None else residual_RO.contiguous(),
        out,
        squares,
        0.0 if normed is None else normed.eps,
        rows,
        O=outputs,
        COLUMNS=columns,
        SCALED=weight.scale is not None,
        EXACT=exact_products(x_RI.dtype),
        BLOCK_R=block_rows,
        BLOCK_O=tile.outputs,
        BLOCK_C=min(max(32, tile.bytes // codes.itemsize), max(32, triton.next_power_of_2(columns))),
        GATED=gated,
        PARTS=parts,
        PARTS_PADDED=triton.next_power_of_2(max(parts, 1)),
        ADDS=residual_RO is not None,
        num_warps=tile.warps,
        num_stages=tile.stages if x_RI.dtype != torch.float32 else 2,
        **launching(out),
    )
    return out, squares


def serves(x_RI: Tensor, weight: Weight) -> bool:
    """Whether `_product` takes these rows: few, in half precision, of whole sixteens of inputs; or codes."""
    if weight.kind != "plain":
        return weight.kind != "int4"
    return len(x_RI) <= MOST_ROWS and x_RI.dtype != torch.float32 and x_RI.shape[1] % 16 == 0


def fuses(x_RI: Tensor, weight: Weight) -> bool:
    """Whether products add a residual and norm what they read."""
    return len(x_RI) <= FUSED_ROWS and serves(x_RI, weight)


def product(x_RI: Tensor, weight: Weight, normed: Normed | None = None) -> Tensor:
    """`F.linear`, `[R, O]`. Inputs are `normed` first where that is given, which `fuses` has to allow."""
    if serves(x_RI, weight):
        return _launch(x_RI, weight, False, normed)[0]
    assert normed is None
    return multiply_int4(x_RI, weight) if weight.kind == "int4" else F.linear(x_RI, weight.codes)


def gated_product(x_RI: Tensor, weight: Weight, normed: Normed | None = None) -> Tensor:
    """`silu(gate) * up` of a weight that holds the gates' rows and then the ups', `[R, O / 2]`."""
    if serves(x_RI, weight):
        return _launch(x_RI, weight, True, normed)[0]
    assert normed is None
    return swiglu(product(x_RI, weight))


def added_product(x_RI: Tensor, weight: Weight, residual_RO: Tensor) -> tuple[Tensor, Tensor]:
    """`residual` plus the product, where it `fuses`, and the sum of the squares of each row in parts."""
    return _launch(x_RI, weight, False, residual_RO=residual_RO)
