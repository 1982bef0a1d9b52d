"""The Triton kernel of products of few rows with large weights (see kernel_products.py).

R rows, O outputs, C columns of a tile, as they are stored: inputs, or bytes of two inputs each in int4.
"""

# What Triton's compiler reads is not what a checker of types takes it for.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from .dequant import unpack
from .pdl import ask_ahead, gdc_launch_dependents, gdc_wait


@triton.jit
def _codes(weight, n, c, COLUMNS: tl.constexpr, WHOLE: tl.constexpr):
    """Columns `c` of the outputs `n`, `[O, C]`."""
    places = weight + n[:, None] * COLUMNS + c[None, :]
    if WHOLE:
        return tl.load(places)
    return tl.load(places, mask=(c < COLUMNS)[None, :], other=0.0)


@triton.jit
def _scales(
    scale,
    zero,
    n,
    g,
    first,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """In int4 the scales and zeros of the outputs `n` in the groups `g` of those that begin at column
    `first`, or of the last ones, `[O, R]` each."""
    if KIND == "int4":
        half: tl.constexpr = BLOCK_C // GROUPS
        at = tl.minimum(first, COLUMNS - BLOCK_C) // half + g[None, :] + n[:, None] * (COLUMNS // half)
        steps, least = tl.load(scale + at).to(tl.float32), tl.load(zero + at).to(tl.float32)
    else:
        steps, least = 0.0, 0.0
    return steps, least


@triton.jit
def _members(
    x,
    r,
    g,
    first,
    R,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """In int4 the inputs of rows `r` in the groups `g` of those that begin at column `first`, or of the last
    ones, `[R, I]`."""
    if KIND == "int4":
        size: tl.constexpr = 2 * BLOCK_C // GROUPS
        i = 2 * tl.minimum(first, COLUMNS - BLOCK_C) + g[:, None] * size + tl.arange(0, size)[None, :]
        inputs = tl.load(x + r[:, None] * (2 * COLUMNS) + i, mask=(r < R)[:, None], other=0.0)
    else:
        inputs = 0.0
    return inputs


@triton.jit
def _add(
    acc,
    codes,
    steps,
    least,
    members,
    x,
    r,
    g,
    first,
    R,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    EXACT: tl.constexpr,
    FLIP: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`acc [O, R]` (FLIP: `[R, O]`) and the product of codes `[O, C]`, whose columns begin at `first`, with
    their inputs. In int4 a weight is `steps * code + least`, and a row stands there once for each of the
    GROUPS that the inputs belong to, with the inputs of group `g` alone: all are added up in the end."""
    each: tl.constexpr = 2 if KIND == "int4" else 1
    inputs: tl.constexpr = COLUMNS * each
    width: tl.constexpr = BLOCK_C * each
    kept: tl.constexpr = tl.float32 if EXACT else x.dtype.element_ty
    own = tl.arange(0, width)
    known = (r < R)[None, :]
    if COLUMNS % BLOCK_C != 0:
        known = known & (first * each + own < inputs)[:, None]
    if GROUPS > 1:
        known = known & ((own // (width // GROUPS))[:, None] == g[None, :])
    places = x + r[None, :] * inputs + (first * each + own)[:, None]
    rows = tl.load(places, mask=known, other=0.0).to(kept)
    numbers = unpack(codes, KIND, kept)
    if KIND == "int4":
        sums = tl.sum(members.to(tl.float32), axis=1)
        acc += steps * tl.dot(numbers, rows, input_precision="ieee") + least * sums[None, :]
    elif FLIP:
        acc = tl.dot(tl.trans(rows), tl.trans(numbers), acc, input_precision="ieee")
    else:
        acc = tl.dot(numbers, rows, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=["R"])
def product_kernel(
    x,
    weight,
    scale,
    zero,
    out,
    R,
    O: tl.constexpr,  # noqa: E741
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    EXACT: tl.constexpr,
    FLIP: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GROUPS: tl.constexpr,
    GATED: tl.constexpr,
    LINES: tl.constexpr,
    STEP: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Some outputs of a tile of rows. GATED: the weight is gates over ups, and out is `silu(gate) * up`."""
    whole: tl.constexpr = COLUMNS % BLOCK_C == 0
    tall: tl.constexpr = 2 * BLOCK_O if GATED else BLOCK_O
    j = tl.arange(0, tall)
    first_out = tl.program_id(0) * BLOCK_O
    # A last tile that sticks out computes an output twice.
    mine = (tl.minimum(first_out + j % BLOCK_O, O - 1) + j // BLOCK_O * O).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    codes = _codes(weight, mine, c, COLUMNS, whole)
    side = tl.arange(0, GROUPS * BLOCK_R)
    first_row = tl.program_id(1) * BLOCK_R
    r, g = first_row + side % BLOCK_R, side // BLOCK_R
    steps, least = _scales(scale, zero, mine, g, 0, COLUMNS, KIND, GROUPS, BLOCK_C)
    if EARLY:
        if COLUMNS > BLOCK_C:
            ask_ahead(weight + BLOCK_C, mine, COLUMNS, COLUMNS - BLOCK_C, LINES, STEP)
        gdc_wait()
        gdc_launch_dependents()
    acc = tl.zeros([GROUPS * BLOCK_R, tall] if FLIP else [tall, GROUPS * BLOCK_R], tl.float32)
    members = _members(x, r, g, 0, R, COLUMNS, KIND, GROUPS, BLOCK_C)
    # What is not multiplied is loaded a turn before it serves: Triton lets only operands run ahead.
    next_members = _members(x, r, g, BLOCK_C, R, COLUMNS, KIND, GROUPS, BLOCK_C)
    next_steps, next_least = _scales(scale, zero, mine, g, BLOCK_C, COLUMNS, KIND, GROUPS, BLOCK_C)
    acc = _add(acc, codes, steps, least, members, x, r, g, 0, R, COLUMNS, KIND, EXACT, FLIP, GROUPS, BLOCK_C)
    for first in range(BLOCK_C, COLUMNS, BLOCK_C):
        codes = _codes(weight, mine, first + c, COLUMNS, whole)
        steps, least, members = next_steps, next_least, next_members
        next_members = _members(x, r, g, first + BLOCK_C, R, COLUMNS, KIND, GROUPS, BLOCK_C)
        next_steps, next_least = _scales(
            scale, zero, mine, g, first + BLOCK_C, COLUMNS, KIND, GROUPS, BLOCK_C
        )
        acc = _add(
            acc, codes, steps, least, members, x, r, g, first,
            R, COLUMNS, KIND, EXACT, FLIP, GROUPS, BLOCK_C,
        )  # fmt: skip
    if GROUPS > 1:
        acc = tl.sum(tl.reshape(acc, [tall, GROUPS, BLOCK_R]), axis=1)
    if FLIP:
        acc = tl.trans(acc)
    if KIND == "int8" or KIND == "fp8":
        acc *= tl.load(scale + mine).to(tl.float32)[:, None]
    kind = out.dtype.element_ty
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(acc, [2, BLOCK_O, BLOCK_R]), [1, 2, 0]))
        gate = gate.to(kind).to(tl.float32)
        opened = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)
        acc = opened * up.to(kind).to(tl.float32)
    n, r = first_out + tl.arange(0, BLOCK_O), first_row + tl.arange(0, BLOCK_R)
    tl.store(out + r[None, :] * O + n[:, None], acc.to(kind), mask=(r < R)[None, :] & (n < O)[:, None])
