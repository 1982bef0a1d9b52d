"""The Triton kernels of a mixture of experts, launched by moe_decode.py.

Token-expert pairs are sorted into blocks of one expert each; gate and up projections with SwiGLU for every
block; the down projection for every block; the weighted sum. Shared experts are one further expert of S times
the width, without the router. Numbers are rounded where the plain functions round them, and sums are in
float32 in an order of their own row alone: a token has the same bits whatever other tokens there are.

N tokens, D model width, I width of an expert, K experts per token, P = N * K token-expert pairs (pair
`n * K + k`), R rows of a tile, B blocks of up to R pairs of one expert. Hidden states are P rows of I, then N
of S * I; outputs are P rows of D, then N of the shared experts.
"""

# Triton kernels are not what their Python types say:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from .gemv_triton import linear_tile, round_swiglu
from .pdl import gdc_launch_dependents, gdc_wait, prefetch_l2, trigger_then_wait


@triton.jit(do_not_specialize=["P", "B"])
def sort_kernel(
    expert_ids_ptr, block_experts_ptr, block_pairs_ptr, P, B, E,
    R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The blocks of one expert: their expert, int32 `[B]` (-1: an unused block), and pairs, int32 `[B, R]`
    (-1: none). BLOCK_E exceeds E."""
    expert, offsets, experts = tl.program_id(0), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_E)
    trigger_then_wait(PDL)
    counts = tl.zeros([BLOCK_E], dtype=tl.int32)
    for start in range(0, P, BLOCK_P):
        ids = tl.load(expert_ids_ptr + start + offsets, mask=start + offsets < P, other=E)
        counts += tl.histogram(ids.to(tl.int32), BLOCK_E)
    blocks = tl.where(experts < E, (counts + R - 1) // R, 0)
    first = tl.sum(tl.where(experts < expert, blocks, 0), axis=0)
    end = tl.sum(tl.where(experts <= expert, blocks, 0), axis=0)
    seen = first * R
    for start in range(0, P, BLOCK_P):
        ids = tl.load(expert_ids_ptr + start + offsets, mask=start + offsets < P, other=E)
        same = (ids == expert).to(tl.int32)
        places = seen + tl.cumsum(same, axis=0) - 1
        tl.store(block_pairs_ptr + places, start + offsets, mask=same > 0)
        seen += tl.sum(same, axis=0)
    places = seen + tl.arange(0, R)
    tl.store(block_pairs_ptr + places, tl.full([R], -1, tl.int32), mask=places < end * R)
    last = tl.where(expert == E - 1, B, end)
    for start in range(first, last, BLOCK_E):
        numbers = tl.where(start + experts < end, expert, -1)
        tl.store(block_experts_ptr + start + experts, numbers, mask=start + experts < last)


@triton.jit
def _pairs_of_block(
    experts_ptr, pairs_ptr, expert, block, P, R: tl.constexpr, BLOCK_P: tl.constexpr
):  # fmt: skip
    """The pairs of a block: (pairs `[R]`, which of them are valid `[R]`, whether any is).

    BLOCK_P is 0 for blocks of `sort_kernel`, and 1 for blocks of one pair. Otherwise there is a block for
    each of up to BLOCK_P pairs: those of every R-th pair of an expert take itself and the next R - 1 pairs of
    that expert, and the others take none.
    """
    places = tl.arange(0, R)
    if BLOCK_P == 0:
        members = tl.load(pairs_ptr + block * R + places, mask=(expert >= 0) & (places >= 0), other=-1)
        valid, some = members >= 0, expert >= 0
    elif BLOCK_P == 1:
        members, valid, some = block + places, places == 0, block >= 0
    else:
        pairs = tl.arange(0, BLOCK_P)
        same = (tl.load(experts_ptr + pairs, mask=pairs < P, other=-1) == expert).to(tl.int32)
        before = tl.sum(tl.where(pairs < block, same, 0), axis=0)
        rank = tl.cumsum(same, axis=0) - 1 - before
        matches = (same[None, :] > 0) & (rank[None, :] == places[:, None])
        members = tl.sum(tl.where(matches, pairs[None, :], 0), axis=1)
        valid, some = places < tl.sum(same, axis=0) - before, before % R == 0
    return members, valid, some


@triton.jit
def _prefetch_then_wait(
    weights, COLUMNS: tl.constexpr, LINES: tl.constexpr, STEP: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Prefetch the beginnings of weight rows, given by pointers, while earlier kernels finish."""
    if PDL:
        prefetch_l2(weights[:, None], tl.zeros([1], tl.int32), 0, COLUMNS, LINES, STEP)
        gdc_wait()
        gdc_launch_dependents()


@triton.jit(do_not_specialize=["N", "P"])
def gate_up_kernel(
    x_ptr, experts_ptr, pairs_ptr,
    w_ptr, scale_ptr, zero_ptr,
    shared_ptr, shared_scale_ptr, shared_zero_ptr, shared_up, shared_scale_up, shared_zero_up,
    hidden_ptr, N, P,
    INNER: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
    COLUMNS: tl.constexpr, KIND: tl.constexpr, GROUP_C: tl.constexpr, FLOAT32: tl.constexpr,
    R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
    LINES: tl.constexpr, STEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`silu(gate(x)) * up(x)` of a tile of I for a block. Shared experts come first: their weights do not
    depend on the router and are prefetched while it runs. Their up projection is `shared_up` numbers behind
    the gate, wherever that is."""
    block = tl.program_id(1)
    shared_blocks = S * tl.cdiv(N, R)
    grouped: tl.constexpr = KIND == "int4" or KIND == "fp8_blocks"
    groups: tl.constexpr = (COLUMNS + GROUP_C - 1) // GROUP_C if grouped else 1
    inputs: tl.constexpr = COLUMNS * 2 if KIND == "int4" else COLUMNS
    j = tl.arange(0, 2 * BLOCK_O)
    # A last tile that extends beyond the outputs computes the last output repeatedly.
    n = tl.minimum(tl.program_id(0) * BLOCK_O + j % BLOCK_O, INNER - 1)
    is_up = (j // BLOCK_O).to(tl.int64)
    shared_up, shared_scale_up = shared_up.to(tl.int64), shared_scale_up.to(tl.int64)
    shared_zero_up = shared_zero_up.to(tl.int64)
    if block < shared_blocks:
        token_blocks = tl.cdiv(N, R)
        tokens = block % token_blocks * R + tl.arange(0, R)
        valid, some = tokens < N, block >= 0
        at = (block // token_blocks * INNER).to(tl.int64)
        gate, up = shared_ptr + at * COLUMNS, shared_up
        scale, scale_up = shared_scale_ptr + at * groups, shared_scale_up
        zero, zero_up = shared_zero_ptr + at * groups, shared_zero_up
        out, stride = hidden_ptr + P.to(tl.int64) * INNER + at, S * INNER
        out_rows = tokens
        _prefetch_then_wait(gate + n * COLUMNS + is_up * up, COLUMNS, LINES, STEP, PDL)
    else:
        if PDL:
            gdc_wait()
            gdc_launch_dependents()
        block -= shared_blocks
        expert = tl.load(experts_ptr + block).to(tl.int64)
        at = expert * 2 * INNER
        gate, up = w_ptr + at * COLUMNS, tl.full([], INNER * COLUMNS, tl.int64)
        scale, scale_up = scale_ptr + at * groups, tl.full([], INNER * groups, tl.int64)
        zero, zero_up = zero_ptr + at * groups, tl.full([], INNER * groups, tl.int64)
        out_rows, valid, some = _pairs_of_block(experts_ptr, pairs_ptr, expert, block, P, R, BLOCK_P)
        out, stride = hidden_ptr, INNER
        tokens = out_rows // K
    if some:
        sums = linear_tile(
            x_ptr + tokens.to(tl.int64) * inputs, valid,
            gate + n * COLUMNS + is_up * up, scale + n * groups + is_up * scale_up,
            zero + n * groups + is_up * zero_up,
            COLUMNS, KIND, GROUP_C, FLOAT32, COLUMNS % BLOCK_C == 0, 2 * BLOCK_O, R, BLOCK_C,
        )  # fmt: skip
        gates, ups = tl.split(tl.permute(tl.reshape(sums, [2, BLOCK_O, R]), [1, 2, 0]))
        hidden = round_swiglu(gates, ups, hidden_ptr.dtype.element_ty)
        outs = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
        pointers = out + out_rows.to(tl.int64)[None, :] * stride + outs[:, None]
        tl.store(pointers, hidden, mask=valid[None, :] & (outs < INNER)[:, None])


@triton.jit(do_not_specialize=["N", "P"])
def down_kernel(
    hidden_ptr, experts_ptr, pairs_ptr,
    w_ptr, scale_ptr, zero_ptr,
    shared_ptr, shared_scale_ptr, shared_zero_ptr,
    out_ptr, N, P,
    D: tl.constexpr, S: tl.constexpr,
    COLUMNS: tl.constexpr, KIND: tl.constexpr, GROUP_C: tl.constexpr, FLOAT32: tl.constexpr,
    R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
    LINES: tl.constexpr, STEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of D of `down(hidden)` for a block. Blocks were made before the preceding kernel started, so
    weights can be prefetched."""
    block = tl.program_id(1)
    shared_blocks = tl.cdiv(N, R) if S > 0 else 0
    grouped: tl.constexpr = KIND == "int4" or KIND == "fp8_blocks"
    groups: tl.constexpr = (COLUMNS + GROUP_C - 1) // GROUP_C if grouped else 1
    inputs: tl.constexpr = COLUMNS * 2 if KIND == "int4" else COLUMNS
    outs = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    n = tl.minimum(outs, D - 1)
    if block < shared_blocks:  # they sum over more columns, and start first
        rows = block * R + tl.arange(0, R)
        valid, some = rows < N, block >= 0
        columns = S * COLUMNS
        weights = shared_ptr + n * columns
        shared_groups: tl.constexpr = (S * COLUMNS + GROUP_C - 1) // GROUP_C if grouped else 1
        scales, zeros = shared_scale_ptr + n * shared_groups, shared_zero_ptr + n * shared_groups
        x = hidden_ptr + P.to(tl.int64) * inputs
        out = out_ptr + P.to(tl.int64) * D
        _prefetch_then_wait(weights, COLUMNS, LINES, STEP, PDL)
    else:
        block -= shared_blocks
        expert = tl.load(experts_ptr + block, cache_modifier=".cg").to(tl.int64)
        at = tl.maximum(expert, 0) * D
        columns = COLUMNS
        weights = w_ptr + at * COLUMNS + n * COLUMNS
        scales, zeros = scale_ptr + at * groups + n * groups, zero_ptr + at * groups + n * groups
        x = hidden_ptr
        out = out_ptr
        _prefetch_then_wait(weights, COLUMNS, LINES, STEP, PDL)
        rows, valid, some = _pairs_of_block(experts_ptr, pairs_ptr, expert, block, P, R, BLOCK_P)
    if some:
        inputs_per_column: tl.constexpr = inputs // COLUMNS
        sums = linear_tile(
            x + rows.to(tl.int64) * (columns * inputs_per_column), valid, weights, scales, zeros,
            columns, KIND, GROUP_C, FLOAT32, COLUMNS % BLOCK_C == 0, BLOCK_O, R, BLOCK_C,
        )  # fmt: skip
        pointers = out + rows.to(tl.int64)[None, :] * D + outs[:, None]
        tl.store(pointers, sums.to(out_ptr.dtype.element_ty), mask=valid[None, :] & (outs < D)[:, None])


@triton.jit(do_not_specialize=["P"])
def sum_kernel(
    outputs_ptr, weights_ptr, out_ptr, P,
    D: tl.constexpr, K: tl.constexpr, S: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The weighted sum over a token's pairs, in order, plus the shared experts' output. Products are rounded
    before they are added (it is compiled without fused multiply-add)."""
    token, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = columns < D
    dtype = out_ptr.dtype.element_ty
    trigger_then_wait(PDL)
    total = tl.zeros([BLOCK_D], dtype=tl.float32)
    for k in tl.static_range(K):
        output = tl.load(outputs_ptr + (token * K + k) * D + columns, mask=mask, other=0.0).to(tl.float32)
        total += tl.load(weights_ptr + token * K + k) * output
    if S > 0:
        shared = tl.load(outputs_ptr + (P + token) * D + columns, mask=mask, other=0.0).to(tl.float32)
        total = total.to(dtype).to(tl.float32) + shared
    tl.store(out_ptr + token * D + columns, total.to(dtype), mask=mask)
