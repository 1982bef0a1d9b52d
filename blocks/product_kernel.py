"""The Triton kernel of products of few rows with large weights (see kernel_products.py).

R rows, O outputs, C columns of a tile, as they are stored: inputs, or bytes of two inputs each in int4.
"""

# What Triton's compiler reads is not what a checker of types takes it for.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from .overlap import ask_ahead, gdc_launch_dependents, gdc_wait
from .unpacking import unpack


@triton.jit
def _codes(weight, n, c, COLUMNS: tl.constexpr, WHOLE: tl.constexpr):
    """Columns `c` of the outputs `n`, `[O, C]`."""
    places = weight + n[:, None] * COLUMNS + c[None, :]
    if WHOLE:
        return tl.load(places)
    return tl.load(places, mask=(c < COLUMNS)[None, :], other=0.0)


@triton.jit
def _group(scale, zero, n, first, COLUMNS: tl.constexpr, KIND: tl.constexpr, BLOCK_C: tl.constexpr):
    """In int4 the scales and zeros of the outputs `n` in the group that begins at column `first`, or in the
    last one, `[O, 1]` each."""
    if KIND == "int4":
        at = n * (COLUMNS // BLOCK_C) + tl.minimum(first, COLUMNS - BLOCK_C) // BLOCK_C
        steps = tl.load(scale + at).to(tl.float32)[:, None]
        least = tl.load(zero + at).to(tl.float32)[:, None]
    else:
        steps, least = 0.0, 0.0
    return steps, least


@triton.jit
def _add(
    acc,
    codes,
    steps,
    least,
    x,
    r,
    first,
    R,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    EXACT: tl.constexpr,
    FLIP: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`acc [O, R]` (FLIP: `[R, O]`) and the product of codes `[O, C]`, whose columns begin at `first`, with
    their inputs; in int4 those are a group, whose weights are `steps * code + least`."""
    each: tl.constexpr = 2 if KIND == "int4" else 1
    inputs: tl.constexpr = COLUMNS * each
    kept: tl.constexpr = tl.float32 if EXACT else x.dtype.element_ty
    i = first * each + tl.arange(0, BLOCK_C * each)
    known = (r < R)[None, :]
    if COLUMNS % BLOCK_C != 0:
        known = known & (i < inputs)[:, None]
    rows = tl.load(x + r[None, :] * inputs + i[:, None], mask=known, other=0.0).to(kept)
    numbers = unpack(codes, KIND, kept)
    if KIND == "int4":
        ones = tl.full(numbers.shape, 1.0, kept)
        acc += steps * tl.dot(numbers, rows, input_precision="ieee")
        acc += least * tl.dot(ones, rows, input_precision="ieee")
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
    steps, least = _group(scale, zero, mine, 0, COLUMNS, KIND, BLOCK_C)
    if EARLY:
        if COLUMNS > BLOCK_C:
            ask_ahead(weight + BLOCK_C, mine, COLUMNS, COLUMNS - BLOCK_C, LINES, STEP)
        gdc_wait()
        gdc_launch_dependents()
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    acc = tl.zeros([BLOCK_R, tall] if FLIP else [tall, BLOCK_R], tl.float32)
    # A group's scales are loaded a turn before they serve: Triton lets loads run ahead for products alone.
    next_steps, next_least = _group(scale, zero, mine, BLOCK_C, COLUMNS, KIND, BLOCK_C)
    acc = _add(acc, codes, steps, least, x, r, 0, R, COLUMNS, KIND, EXACT, FLIP, BLOCK_C)
    for first in range(BLOCK_C, COLUMNS, BLOCK_C):
        codes = _codes(weight, mine, first + c, COLUMNS, whole)
        steps, least = next_steps, next_least
        next_steps, next_least = _group(scale, zero, mine, first + BLOCK_C, COLUMNS, KIND, BLOCK_C)
        acc = _add(acc, codes, steps, least, x, r, first, R, COLUMNS, KIND, EXACT, FLIP, BLOCK_C)
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
    n = first_out + tl.arange(0, BLOCK_O)
    tl.store(out + r[None, :] * O + n[:, None], acc.to(kind), mask=(r < R)[None, :] & (n < O)[:, None])
