"""Triton code of linear layers for a few rows: `gemv_kernel` for whole layers (launched by gemv.py), and
`linear_tile`, the building block of the experts' kernels in moe_decode_triton.py.

R rows, O outputs, C columns of a tile as they are stored (inputs, or bytes of two inputs each in int4), G
groups of inputs that share an int4 scale. Sums are in float32.
"""

# Triton kernels are not what their Python types say.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from .dequant import dequantize, unpack_int4
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
    columns that begins at `first` or, beyond the end, of the last block, `[O, G]`."""
    if KIND == "int4":
        columns: tl.constexpr = BLOCK_C // GROUPS
        g = tl.minimum(first, COLUMNS - BLOCK_C) // columns + tl.arange(0, GROUPS)
        at = n[:, None] * (COLUMNS // columns) + g[None, :]
        scale, zero = tl.load(scale_ptr + at), tl.load(zero_ptr + at)
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


@triton.jit(do_not_specialize=["R"])
def gemv_kernel(
    x, weight, scale_ptr, zero_ptr, out, R,
    O: tl.constexpr, COLUMNS: tl.constexpr,  # noqa: E741
    KIND: tl.constexpr, FLOAT32: tl.constexpr, FLIP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
    GROUPS: tl.constexpr, GATED: tl.constexpr,
    LINES: tl.constexpr, STEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of outputs for a tile of rows. GATED: the weight is gate over up, and `out` is
    `silu(gate) * up`. An output is one chain of tensor core steps over ascending inputs, so that its bits
    don't depend on the tile."""
    whole: tl.constexpr = COLUMNS % BLOCK_C == 0
    weight_rows: tl.constexpr = 2 * BLOCK_O if GATED else BLOCK_O
    j = tl.arange(0, weight_rows)
    first_output = tl.program_id(0) * BLOCK_O
    # A last tile that extends beyond the outputs computes the last output repeatedly.
    n = (tl.minimum(first_output + j % BLOCK_O, O - 1) + j // BLOCK_O * O).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    codes = _load_codes(weight, n, c, COLUMNS, whole)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    scale, zero = _load_scales(scale_ptr, zero_ptr, n, 0, COLUMNS, KIND, GROUPS, BLOCK_C)
    if PDL:
        if COLUMNS > BLOCK_C:
            prefetch_l2(weight + BLOCK_C, n, COLUMNS, COLUMNS - BLOCK_C, LINES, STEP)
        gdc_wait()
        gdc_launch_dependents()
    acc = tl.zeros([BLOCK_R, weight_rows] if FLIP else [weight_rows, BLOCK_R], tl.float32)
    next_scale, next_zero = scale, zero
    if KIND == "int4":  # loaded one iteration ahead: Triton pipelines only the operands of `tl.dot`
        next_scale, next_zero = _load_scales(scale_ptr, zero_ptr, n, BLOCK_C, COLUMNS, KIND, GROUPS, BLOCK_C)
    acc = _accumulate(acc, codes, scale, zero, x, r, 0, R, COLUMNS, KIND, FLOAT32, FLIP, BLOCK_C)
    for first in range(BLOCK_C, COLUMNS, BLOCK_C):
        codes = _load_codes(weight, n, first + c, COLUMNS, whole)
        if KIND == "int4":
            scale, zero = next_scale, next_zero
            next_scale, next_zero = _load_scales(
                scale_ptr, zero_ptr, n, first + BLOCK_C, COLUMNS, KIND, GROUPS, BLOCK_C
            )
        acc = _accumulate(acc, codes, scale, zero, x, r, first, R, COLUMNS, KIND, FLOAT32, FLIP, BLOCK_C)
    if FLIP:
        acc = tl.trans(acc)
    dtype = out.dtype.element_ty
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(acc, [2, BLOCK_O, BLOCK_R]), [1, 2, 0]))
        gate = gate.to(dtype).to(tl.float32)
        silu = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
        acc = silu * up.to(dtype).to(tl.float32)
    n_out = first_output + tl.arange(0, BLOCK_O)
    mask = (r < R)[None, :] & (n_out < O)[:, None]
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
def _load_group_parameters(
    scale_ptr, zero_ptr, outs, groups, start,
    COLUMNS: tl.constexpr, GROUP_C: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Int4 scales and zeros of weight rows `outs` in the groups of a block of columns, `[O, G]` each,
    float32."""
    group = start // GROUP_C + tl.arange(0, BLOCK_C // GROUP_C)
    mask = (group < COLUMNS // GROUP_C)[None, :]
    at = outs[:, None] * groups + group[None, :]
    scale = tl.load(scale_ptr + at, mask=mask, other=0.0).to(tl.float32)
    zero = tl.load(zero_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return scale, zero


@triton.jit
def _load_even_odd(x_ptr, start, columns, BLOCK_C: tl.constexpr):
    """Even and odd inputs of a row from column `start` on, `[C]` each, float32."""
    offsets = 2 * start + tl.arange(0, 2 * BLOCK_C)
    x = tl.load(x_ptr + offsets, mask=offsets < 2 * columns, other=0.0).to(tl.float32)
    return tl.split(tl.reshape(x, (BLOCK_C, 2)))


@triton.jit
def _int4_sums(
    even, odd, w_even, w_odd, scale, zero,
    BLOCK_O: tl.constexpr, GROUP_C: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The contribution of a tile of int4 weights `[O, C]` to a row's outputs, `[O]`, scaled group by
    group."""
    G: tl.constexpr = BLOCK_C // GROUP_C
    products = tl.reshape(w_even * even[None, :] + w_odd * odd[None, :], (BLOCK_O, G, GROUP_C))
    inputs = tl.sum(tl.reshape(even + odd, (G, GROUP_C)), axis=1)
    return tl.sum(tl.sum(products, axis=2) * scale + zero * inputs[None, :], axis=1)


@triton.jit
def _gemv_tile(
    x_ptr, w_ptr, scale_ptr, zero_ptr, outs, stride, groups,
    COLUMNS: tl.constexpr, KIND: tl.constexpr, GROUP_C: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """One row `x` times weight rows `outs`, `[O]`, without tensor cores, at memory bandwidth."""
    whole: tl.constexpr = COLUMNS % (BLOCK_C * UNROLL) == 0
    padding: tl.constexpr = 0.0 if KIND == "fp8" else 0  # no integer becomes a float8
    if KIND == "int4":
        sums = tl.zeros([BLOCK_O], dtype=tl.float32)
    else:
        sums = tl.zeros([BLOCK_O, BLOCK_C], dtype=tl.float32)
    for block in range(0, COLUMNS, BLOCK_C * UNROLL):
        for step in tl.static_range(UNROLL):
            start = block + step * BLOCK_C
            columns = start + tl.arange(0, BLOCK_C)
            pointers = w_ptr + outs[:, None] * stride + columns[None, :]
            # Every weight row loads the inputs itself: from L1, but in the layout of its own products.
            at = tl.zeros([BLOCK_O, 1], dtype=tl.int32) + columns[None, :]
            if whole:
                w = tl.load(pointers)
            else:
                w = tl.load(pointers, mask=at < COLUMNS, other=padding)
            if KIND == "int4":
                w_even, w_odd = unpack_int4(w, tl.float32)
                scale, zero = _load_group_parameters(
                    scale_ptr, zero_ptr, outs, groups, start, COLUMNS, GROUP_C, BLOCK_C
                )
                even, odd = _load_even_odd(x_ptr, start, COLUMNS, BLOCK_C)
                sums += _int4_sums(even, odd, w_even, w_odd, scale, zero, BLOCK_O, GROUP_C, BLOCK_C)
            else:
                x = tl.load(x_ptr + at, mask=at < COLUMNS, other=0.0).to(tl.float32)
                sums += w.to(tl.float32) * x
    if KIND != "int4":
        sums = tl.sum(sums, axis=1)
    if KIND == "int8" or KIND == "fp8":
        sums *= tl.load(scale_ptr + outs).to(tl.float32)
    return sums


@triton.jit
def _gemm_tile(
    x_ptr, rows, valid, w_ptr, scale_ptr, zero_ptr, outs, stride, groups,
    COLUMNS: tl.constexpr, KIND: tl.constexpr, GROUP_C: tl.constexpr, FLOAT32: tl.constexpr,
    R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Up to 16 rows `rows` of `x`, where `valid`, times weight rows `outs`, `[R, O]`, on the tensor cores."""
    padding: tl.constexpr = 0.0 if KIND == "fp8" else 0  # no integer becomes a float8
    inputs: tl.constexpr = 2 * COLUMNS if KIND == "int4" else COLUMNS
    dtype: tl.constexpr = tl.float32 if FLOAT32 else x_ptr.dtype.element_ty
    sums = tl.zeros([R, BLOCK_O], dtype=tl.float32)
    for start in range(0, COLUMNS, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        inside = columns < COLUMNS
        pointers = w_ptr + outs[:, None] * stride + columns[None, :]
        if COLUMNS % BLOCK_C == 0:
            w = tl.load(pointers)
        else:
            w = tl.load(pointers, mask=inside[None, :], other=padding)
        mask = valid[:, None] & inside[None, :]
        if KIND == "int4":
            shape: tl.constexpr = (BLOCK_O, BLOCK_C // GROUP_C, GROUP_C)
            scale, zero = _load_group_parameters(
                scale_ptr, zero_ptr, outs, groups, start, COLUMNS, GROUP_C, BLOCK_C
            )
            w_even, w_odd = unpack_int4(w, tl.float32)
            w_even = tl.reshape(w_even, shape) * scale[:, :, None] + zero[:, :, None]
            w_odd = tl.reshape(w_odd, shape) * scale[:, :, None] + zero[:, :, None]
            w_even, w_odd = tl.reshape(w_even, (BLOCK_O, BLOCK_C)), tl.reshape(w_odd, (BLOCK_O, BLOCK_C))
            pairs = x_ptr + rows[:, None] * inputs + 2 * columns[None, :]
            even, odd = tl.load(pairs, mask=mask, other=0.0), tl.load(pairs + 1, mask=mask, other=0.0)
            sums = tl.dot(even.to(dtype), tl.trans(w_even.to(dtype)), sums, input_precision="ieee")
            sums = tl.dot(odd.to(dtype), tl.trans(w_odd.to(dtype)), sums, input_precision="ieee")
        else:
            x = tl.load(x_ptr + rows[:, None] * inputs + columns[None, :], mask=mask, other=0.0)
            sums = tl.dot(x.to(dtype), tl.trans(w.to(dtype)), sums, input_precision="ieee")
    if KIND == "int8" or KIND == "fp8":
        sums *= tl.load(scale_ptr + outs).to(tl.float32)[None, :]
    return sums


@triton.jit
def linear_tile(
    x_ptr, rows, valid, w_ptr, scale_ptr, zero_ptr, outs, stride, groups,
    COLUMNS: tl.constexpr, KIND: tl.constexpr, GROUP_C: tl.constexpr, FLOAT32: tl.constexpr,
    R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Rows `rows` of `x` times weight rows `outs`, `[R, O]`. `stride` is the number of columns from one
    weight row to the next, `groups` that of int4 scales."""
    if R == 1:
        x = x_ptr + tl.sum(rows, axis=0) * (2 * COLUMNS if KIND == "int4" else COLUMNS)
        sums = _gemv_tile(
            x, w_ptr, scale_ptr, zero_ptr, outs, stride, groups,
            COLUMNS, KIND, GROUP_C, BLOCK_O, BLOCK_C, UNROLL,
        )[None, :]  # fmt: skip
    else:
        sums = _gemm_tile(
            x_ptr, rows, valid, w_ptr, scale_ptr, zero_ptr, outs, stride, groups,
            COLUMNS, KIND, GROUP_C, FLOAT32, R, BLOCK_O, BLOCK_C,
        )  # fmt: skip
    return sums
