"""The three Triton kernels of a mixture of experts for few tokens, launched by moe_decode.py.

Gate and up projections with SwiGLU for every token-expert pair; the down projection for every pair; the
weighted sum. Shared experts are further pairs, S per token, without the router. Weights are read once and in
place; sums are in float32 and in a fixed order.

N tokens, D model width, I width of an expert, K experts per token, P = N * K token-expert pairs, R rows of a
tile. A table of pairs has P + S * N rows: pair `n * K + k`, then `P + s * N + n`.
"""

# Triton kernels are not what their Python types say:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportCallIssue=false

import triton
import triton.language as tl

from .gemv_triton import linear_tile
from .pdl import gdc_launch_dependents, gdc_wait, prefetch_l2, trigger_then_wait


@triton.jit
def _pairs_of_block(expert_ids_ptr, expert, pair, P, R: tl.constexpr, BLOCK_P: tl.constexpr):
    """The pairs that the block of `pair` computes: (pairs `[R]`, which of them are valid `[R]`, their
    number).

    For R = 1 it is `pair` itself. Otherwise every R-th pair of an expert takes itself and the next R - 1
    pairs of that expert, and the blocks of the other pairs take none.
    """
    slots = tl.arange(0, R)
    if R == 1:
        members, count = slots + pair, 1
    else:
        pairs = tl.arange(0, BLOCK_P)
        same = (tl.load(expert_ids_ptr + pairs, mask=pairs < P, other=-1) == expert).to(tl.int32)
        before = tl.sum(tl.where(pairs < pair, same, 0), axis=0)
        rank = tl.cumsum(same, axis=0) - 1 - before
        count = tl.where(before % R == 0, tl.sum(same, axis=0) - before, 0)
        matches = (same[None, :] > 0) & (rank[None, :] == slots[:, None])
        members = tl.sum(tl.where(matches, pairs[None, :], 0), axis=1)
    return members, slots < count, count


@triton.jit
def _shared_rows(block, N, R: tl.constexpr):
    """The shared expert that a block computes, its tokens `[R]`, which of them are valid, their number."""
    blocks = tl.cdiv(N, R)
    tokens = block % blocks * R + tl.arange(0, R)
    return block // blocks, tokens, tokens < N, R


@triton.jit(do_not_specialize=["N", "P"])
def gate_up_kernel(
    x_ptr, expert_ids_ptr,
    w_ptr, scale_ptr, zero_ptr,
    shared_gate_ptr, shared_gate_scale_ptr, shared_gate_zero_ptr,
    shared_up_ptr, shared_up_scale_ptr, shared_up_zero_ptr,
    hidden_ptr, N, P,
    INNER: tl.constexpr, K: tl.constexpr,
    COLUMNS: tl.constexpr, KIND: tl.constexpr, GROUP_C: tl.constexpr, FLOAT32: tl.constexpr,
    R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr, LINES: tl.constexpr, STEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`silu(gate(x)) * up(x)` of a tile of I for one pair (R = 1), or for up to R pairs of an expert. Shared
    experts come first: their weights do not depend on the router and are prefetched while it runs."""
    tile = tl.program_id(0) * BLOCK_O
    shared_blocks = tl.num_programs(1) - P
    pair, block = tl.program_id(1) - shared_blocks, tl.program_id(1)
    groups: tl.constexpr = COLUMNS // GROUP_C if KIND == "int4" else 1
    columns = tile + tl.arange(0, BLOCK_O)
    outs = tl.minimum(columns, INNER - 1)
    if block < shared_blocks:
        shared, tokens, valid, count = _shared_rows(block, N, R)
        rows = P + shared * N + tokens
        at = (shared * INNER).to(tl.int64)
        gate, up = shared_gate_ptr + at * COLUMNS, shared_up_ptr + at * COLUMNS
        gate_scale, up_scale = shared_gate_scale_ptr + at * groups, shared_up_scale_ptr + at * groups
        gate_zero, up_zero = shared_gate_zero_ptr + at * groups, shared_up_zero_ptr + at * groups
        if PDL:
            prefetch_l2(gate, outs, COLUMNS, COLUMNS, LINES, STEP)
            prefetch_l2(up, outs, COLUMNS, COLUMNS, LINES, STEP)
            gdc_wait()
            gdc_launch_dependents()
    else:
        if PDL:
            gdc_wait()
            gdc_launch_dependents()
        expert = tl.load(expert_ids_ptr + pair).to(tl.int64)
        at = expert * 2 * INNER
        gate, up = w_ptr + at * COLUMNS, w_ptr + (at + INNER) * COLUMNS
        gate_scale, up_scale = scale_ptr + at * groups, scale_ptr + (at + INNER) * groups
        gate_zero, up_zero = zero_ptr + at * groups, zero_ptr + (at + INNER) * groups
        rows, valid, count = _pairs_of_block(expert_ids_ptr, expert, pair, P, R, BLOCK_P)
        tokens = rows // K
    if count > 0:
        gates = linear_tile(
            x_ptr, tokens, valid, gate, gate_scale, gate_zero, outs, COLUMNS, groups,
            COLUMNS, KIND, GROUP_C, FLOAT32, R, BLOCK_O, BLOCK_C, UNROLL,
        )  # fmt: skip
        ups = linear_tile(
            x_ptr, tokens, valid, up, up_scale, up_zero, outs, COLUMNS, groups,
            COLUMNS, KIND, GROUP_C, FLOAT32, R, BLOCK_O, BLOCK_C, UNROLL,
        )  # fmt: skip
        hidden = gates / (1.0 + tl.exp(-gates)) * ups
        pointers = hidden_ptr + rows[:, None] * INNER + columns[None, :]
        dtype = hidden_ptr.dtype.element_ty
        tl.store(pointers, hidden.to(dtype), mask=valid[:, None] & (columns < INNER)[None, :])


@triton.jit(do_not_specialize=["N", "P"])
def down_kernel(
    hidden_ptr, expert_ids_ptr,
    w_ptr, scale_ptr, zero_ptr,
    shared_ptr, shared_scale_ptr, shared_zero_ptr,
    out_ptr, N, P,
    D: tl.constexpr, S: tl.constexpr,
    COLUMNS: tl.constexpr, KIND: tl.constexpr, GROUP_C: tl.constexpr, FLOAT32: tl.constexpr,
    R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr, LINES: tl.constexpr, STEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of D of `down(hidden)`, float32, for one pair (R = 1), or for up to R pairs of an expert. Expert
    ids were written before the preceding kernel started, so weights can be prefetched."""
    tile, block = tl.program_id(0) * BLOCK_O, tl.program_id(1)
    columns = tile + tl.arange(0, BLOCK_O)
    outs = tl.minimum(columns, D - 1)
    if PDL:
        if block < P:
            expert = tl.load(expert_ids_ptr + block, cache_modifier=".cg").to(tl.int64)
            prefetch_l2(w_ptr + expert * D * COLUMNS, outs, COLUMNS, COLUMNS, LINES, STEP)
        else:
            stripe = shared_ptr + (block - P) // tl.cdiv(N, R) * COLUMNS
            prefetch_l2(stripe, outs, S * COLUMNS, COLUMNS, LINES, STEP)
        gdc_wait()
        gdc_launch_dependents()
    if block < P:
        expert = tl.load(expert_ids_ptr + block).to(tl.int64)
        groups = COLUMNS // GROUP_C if KIND == "int4" else 1
        stride = COLUMNS
        at = expert * D
        down, scale, zero = w_ptr + at * COLUMNS, scale_ptr + at * groups, zero_ptr + at * groups
        rows, valid, count = _pairs_of_block(expert_ids_ptr, expert, block, P, R, BLOCK_P)
    else:  # a shared expert is a range of columns
        shared, tokens, valid, count = _shared_rows(block - P, N, R)
        rows = P + shared * N + tokens
        groups = S * (COLUMNS // GROUP_C) if KIND == "int4" else 1
        stride = S * COLUMNS
        at = (shared * (COLUMNS // GROUP_C if KIND == "int4" else 0)).to(tl.int64)
        down, scale, zero = shared_ptr + shared * COLUMNS, shared_scale_ptr + at, shared_zero_ptr + at
    if count > 0:
        outputs = linear_tile(
            hidden_ptr, rows, valid, down, scale, zero, outs, stride, groups,
            COLUMNS, KIND, GROUP_C, FLOAT32, R, BLOCK_O, BLOCK_C, UNROLL,
        )  # fmt: skip
        pointers = out_ptr + rows[:, None] * D + columns[None, :]
        tl.store(pointers, outputs, mask=valid[:, None] & (columns < D)[None, :])


@triton.jit(do_not_specialize=["N", "P"])
def sum_kernel(
    outputs_ptr, weights_ptr, out_ptr, N, P, D,
    K: tl.constexpr, S: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The weighted sum over a token's pairs, in order, plus the shared experts' outputs."""
    token, columns = tl.program_id(1), tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = columns < D
    trigger_then_wait(PDL)
    total = tl.zeros([BLOCK_D], dtype=tl.float32)
    for k in tl.static_range(K):
        pair = token * K + k
        total += tl.load(weights_ptr + pair) * tl.load(outputs_ptr + pair * D + columns, mask=mask, other=0.0)
    for s in tl.static_range(S):
        total += tl.load(outputs_ptr + (P + s * N + token) * D + columns, mask=mask, other=0.0)
    tl.store(out_ptr + token * D + columns, total.to(out_ptr.dtype.element_ty), mask=mask)
