"""Triton code of linear layers for a few rows: `gemv_kernel` for whole layers (launched by gemv.py), and
`linear_tile`, the building block of the experts' kernels in moe_decode_triton.py.

R rows, O outputs, C columns of a tile as they are stored (inputs, or bytes of two inputs each in int4), G
groups of inputs that share an int4 scale. Sums are in float32.
"""

# Triton kernels are not what their Python types say.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportIndexIssue=false

import triton
import triton.language as tl

from .dequant import GROUP_INPUTS, dequantize
from .pdl import gdc_launch_dependents, gdc_wait, prefetch_l2


@triton.jit
def _load_codes(weight, n, c, COLUMNS: tl.constexpr, WHOLE: tl.constexpr):
    """Columns `c` of the weight rows `n`, `[O, C]`."""
    pointers = weight + n[:, None] * COLUMNS + c[None, :]
    if WHOLE:
        return tl.load(pointers)
    return tl.load(pointers, mask=(c < COLUMNS)[None, :], other=0.0)


@triton.jit
def _load_scales(
    scale_ptr, zero_ptr, n, first,
    COLUMNS: tl.constexpr, KIND: tl.constexpr, GROUPS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The scales of the weight rows `n`, `[O]`, or for int4 scales and zeros of the groups of the block of
    columns that begins at `first` or, beyond the end, of the last block, `[O, G]`; for fp8 blocks the scales
    of groups of columns, beyond the end those of the last group."""
    if KIND == "int4":
        columns: tl.constexpr = BLOCK_C // GROUPS
        g = tl.minimum(first, COLUMNS - BLOCK_C) // columns + tl.arange(0, GROUPS)
        at = n[:, None] * (COLUMNS // columns) + g[None, :]
        scale, zero = tl.load(scale_ptr + at), tl.load(zero_ptr + at)
    elif KIND == "fp8_blocks":
        count: tl.constexpr = (COLUMNS + GROUP_INPUTS - 1) // GROUP_INPUTS
        g = tl.minimum(first // GROUP_INPUTS + tl.arange(0, GROUPS), count - 1)
        scale = tl.load(scale_ptr + n[:, None] * count + g[None, :])
        zero = scale  # not used, but of a type that a loop can carry
    elif KIND == "plain":
        scale, zero = 0.0, 0.0
    else:
        scale, zero = tl.load(scale_ptr + n), 0.0
    return scale, zero


@triton.jit
def _accumulate(
    acc, codes, scale, zero, x, r, first, R,
    COLUMNS: tl.constexpr, KIND: tl.constexpr, FLOAT32: tl.constexpr, FLIP: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """`acc [O, R]` (FLIP: `[R, O]`) plus the product of codes `[O, C]`, whose columns begin at `first`, with
    their inputs."""
    per_column: tl.constexpr = 2 if KIND == "int4" else 1
    inputs: tl.constexpr = COLUMNS * per_column
    dtype: tl.constexpr = tl.float32 if FLOAT32 else x.dtype.element_ty
    i = first * per_column + tl.arange(0, BLOCK_C * per_column)
    mask = (r < R)[None, :]
    if COLUMNS % BLOCK_C != 0:
        mask = mask & (i < inputs)[:, None]
    rows = tl.load(x + r[None, :] * inputs + i[:, None], mask=mask, other=0.0).to(dtype)
    numbers = dequantize(codes, scale, zero, KIND, dtype)
    if FLIP:
        acc = tl.dot(tl.trans(rows), tl.trans(numbers), acc, input_precision="ieee")
    else:
        acc = tl.dot(numbers, rows, acc, input_precision="ieee")
    return acc


@triton.jit
def round_swiglu(gate, up, DTYPE: tl.constexpr):
    """`silu(gate) * up` of float32 sums, rounded to DTYPE where the plain functions round."""
    gate = gate.to(DTYPE).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(DTYPE).to(tl.float32)
    return (silu * up.to(DTYPE).to(tl.float32)).to(DTYPE)


@triton.jit(do_not_specialize=["R"])
def gemv_kernel(
    x, weight, scale_ptr, zero_ptr, bias, out, R,
    O: tl.constexpr, COLUMNS: tl.constexpr,  # noqa: E741
    KIND: tl.constexpr, FLOAT32: tl.constexpr, FLIP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
    GROUPS: tl.constexpr, GATED: tl.constexpr, CHAIN: tl.constexpr,
    LINES: tl.constexpr, STEP: tl.constexpr, EARLY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of outputs for a tile of rows, with their `bias` if it is not None. GATED: the weight is gate
    over up, and `out` is `silu(gate) * up`, without a bias. An output is one chain of tensor core steps over
    ascending inputs, so that its bits don't depend on the tile. With fewer CHAIN columns than there are, it
    is one over each part of so many columns, and `out` is `[parts, R, O]` in float32."""
    if PDL and EARLY:
        gdc_launch_dependents()
    whole: tl.constexpr = COLUMNS % BLOCK_C == 0
    parted: tl.constexpr = CHAIN < COLUMNS
    weight_rows: tl.constexpr = 2 * BLOCK_O if GATED else BLOCK_O
    j = tl.arange(0, weight_rows)
    first_output = tl.program_id(0) * BLOCK_O
    # A last tile that extends beyond the outputs computes the last output repeatedly.
    n = (tl.minimum(first_output + j % BLOCK_O, O - 1) + j // BLOCK_O * O).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    begin = tl.program_id(2) * CHAIN if parted else 0
    codes = _load_codes(weight, n, begin + c, COLUMNS, whole)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    scale, zero = _load_scales(scale_ptr, zero_ptr, n, begin, COLUMNS, KIND, GROUPS, BLOCK_C)
    if PDL:
        if CHAIN > BLOCK_C:
            prefetch_l2(weight + begin + BLOCK_C, n, COLUMNS, CHAIN - BLOCK_C, LINES, STEP)
        gdc_wait()
        if not EARLY:
            gdc_launch_dependents()
    acc = tl.zeros([BLOCK_R, weight_rows] if FLIP else [weight_rows, BLOCK_R], tl.float32)
    next_scale, next_zero = scale, zero
    grouped: tl.constexpr = KIND == "int4" or KIND == "fp8_blocks"
    if grouped:  # loaded one iteration ahead: Triton pipelines only the operands of `tl.dot`
        next_scale, next_zero = _load_scales(
            scale_ptr, zero_ptr, n, begin + BLOCK_C, COLUMNS, KIND, GROUPS, BLOCK_C
        )
    acc = _accumulate(acc, codes, scale, zero, x, r, begin, R, COLUMNS, KIND, FLOAT32, FLIP, BLOCK_C)
    end = tl.minimum(begin + CHAIN, COLUMNS) if parted else COLUMNS
    for first in range(begin + BLOCK_C, end, BLOCK_C):
        codes = _load_codes(weight, n, first + c, COLUMNS, whole)
        if grouped:
            scale, zero = next_scale, next_zero
            next_scale, next_zero = _load_scales(
                scale_ptr, zero_ptr, n, first + BLOCK_C, COLUMNS, KIND, GROUPS, BLOCK_C
            )
        acc = _accumulate(acc, codes, scale, zero, x, r, first, R, COLUMNS, KIND, FLOAT32, FLIP, BLOCK_C)
    if FLIP:
        acc = tl.trans(acc)
    if bias is not None:
        acc += tl.load(bias + n)[:, None].to(tl.float32)
    dtype = out.dtype.element_ty
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(acc, [2, BLOCK_O, BLOCK_R]), [1, 2, 0]))
        acc = round_swiglu(gate, up, dtype)
    n_out = first_output + tl.arange(0, BLOCK_O)
    mask = (r < R)[None, :] & (n_out < O)[:, None]
    if parted:
        out += tl.program_id(2).to(tl.int64) * R * O
    tl.store(out + r.to(tl.int64)[None, :] * O + n_out[:, None], acc.to(dtype), mask=mask)


@triton.jit
def decode_kernel(
    weight, scale_ptr, zero_ptr, out,
    O: tl.constexpr, COLUMNS: tl.constexpr, KIND: tl.constexpr, FLOAT32: tl.constexpr,  # noqa: E741
    BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """A tile of a weight, decoded as in `gemv_kernel`."""
    n = tl.minimum(tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O), O - 1).to(tl.int64)
    first = tl.program_id(1) * BLOCK_C
    codes = _load_codes(weight, n, first + tl.arange(0, BLOCK_C), COLUMNS, COLUMNS % BLOCK_C == 0)
    scale, zero = _load_scales(scale_ptr, zero_ptr, n, first, COLUMNS, KIND, GROUPS, BLOCK_C)
    dtype: tl.constexpr = tl.float32 if FLOAT32 else out.dtype.element_ty
    numbers = dequantize(codes, scale, zero, KIND, dtype)
    per_column: tl.constexpr = 2 if KIND == "int4" else 1
    i = first * per_column + tl.arange(0, BLOCK_C * per_column)
    pointers = out + n[:, None] * (COLUMNS * per_column) + i[None, :]
    tl.store(pointers, numbers.to(out.dtype.element_ty), mask=(i < COLUMNS * per_column)[None, :])


@triton.jit
def _load_tile_scales(
    scales, zeros, start, columns,
    KIND: tl.constexpr, GROUP_C: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Scales `[O]`, or of the groups of a block of columns `[O, G]`: for int4 with zeros, for fp8 blocks."""
    if KIND == "fp8_blocks":
        count: tl.constexpr = BLOCK_C // GROUP_C if BLOCK_C > GROUP_C else 1
        group = start // GROUP_C + tl.arange(0, count)[None, :]
        scale = tl.load(scales[:, None] + group, mask=group * GROUP_C < columns, other=0.0)
        zero = scale
    elif KIND == "int4":
        group = start // GROUP_C + tl.arange(0, BLOCK_C // GROUP_C)[None, :]
        inside = group < columns // GROUP_C
        scale = tl.load(scales[:, None] + group, mask=inside, other=0.0)
        zero = tl.load(zeros[:, None] + group, mask=inside, other=0.0)
    elif KIND == "plain":
        scale, zero = 0.0, 0.0
    else:
        scale, zero = tl.load(scales), 0.0
    return scale, zero


@triton.jit
def linear_tile(
    rows, valid, weights, scales, zeros, columns,
    KIND: tl.constexpr, GROUP_C: tl.constexpr, FLOAT32: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Weight rows times rows of inputs, where `valid`: `[O, R]`, float32. Both are given by pointers to their
    beginnings, as are the scales; a weight row has `columns` columns (WHOLE: a multiple of BLOCK_C). As in
    `gemv_kernel`, an output is one chain over ascending columns."""
    padding: tl.constexpr = 0.0 if KIND == "fp8" or KIND == "fp8_blocks" else 0  # no integer becomes a float8
    grouped: tl.constexpr = KIND == "int4" or KIND == "fp8_blocks"
    per_column: tl.constexpr = 2 if KIND == "int4" else 1
    dtype: tl.constexpr = tl.float32 if FLOAT32 else rows.dtype.element_ty
    c, i = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_C * per_column)
    sums = tl.zeros([BLOCK_O, BLOCK_R], dtype=tl.float32)
    scale, zero = _load_tile_scales(scales, zeros, 0, columns, KIND, GROUP_C, BLOCK_C)
    next_scale, next_zero = scale, zero
    for start in range(0, columns, BLOCK_C):
        mask = valid[None, :]
        if WHOLE:
            codes = tl.load(weights[:, None] + (start + c)[None, :])
        else:
            codes = tl.load(
                weights[:, None] + (start + c)[None, :], mask=(start + c < columns)[None, :], other=padding
            )
            mask = mask & (start * per_column + i < columns * per_column)[:, None]
        inputs = tl.load(rows[None, :] + (start * per_column + i)[:, None], mask=mask, other=0.0)
        if grouped:  # loaded one iteration ahead: Triton pipelines only the operands of `tl.dot`
            scale, zero = next_scale, next_zero
            next_scale, next_zero = _load_tile_scales(
                scales, zeros, start + BLOCK_C, columns, KIND, GROUP_C, BLOCK_C
            )
        numbers = dequantize(codes, scale, zero, KIND, dtype)
        sums = tl.dot(numbers, inputs.to(dtype), sums, input_precision="ieee")
    return sums
