"""The three Triton kernels of experts for few tokens, which read each chosen expert once (see `few_tokens`).

Gate and up of every pair of a token and an expert with SwiGLU; down of every pair; the weighted sum. The
shared experts are pairs too, S a token, that nobody chose. Sums have one order.

N tokens, D model width, E experts, I width of an expert, K experts a token, P = N * K pairs of a token and
an expert, R rows of a tile. A table of pairs has P + S * N rows: pair `n * K + k`, then `P + s * N + n`.
"""

# What Triton compiles is not what its Python types say:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportCallIssue=false

import triton
import triton.language as tl

from .pdl import ask_ahead, gdc_launch_dependents, gdc_wait, let_in
from .row_products import few, many


@triton.jit
def _members(chosen_ptr, expert, pair, P, R: tl.constexpr, BLOCK_P: tl.constexpr):
    """The pairs that a block computes: for R = 1 its own; else up to R with the same expert from its own on,
    if that is every R-th of them, or none. (pairs `[R]`, which of them there are `[R]`, their number)."""
    places = tl.arange(0, R)
    if R == 1:
        members, count = places + pair, 1
    else:
        pairs = tl.arange(0, BLOCK_P)
        same = (tl.load(chosen_ptr + pairs, mask=pairs < P, other=-1) == expert).to(tl.int32)
        before = tl.sum(tl.where(pairs < pair, same, 0), axis=0)
        rank = tl.cumsum(same, axis=0) - 1 - before
        count = tl.where(before % R == 0, tl.sum(same, axis=0) - before, 0)
        mine = (same[None, :] > 0) & (rank[None, :] == places[:, None])
        members = tl.sum(tl.where(mine, pairs[None, :], 0), axis=1)
    return members, places < count, count


@triton.jit
def _shared_rows(block, N, R: tl.constexpr):
    """Which shared expert a block computes, of which tokens `[R]`, which of them there are, their number."""
    blocks = tl.cdiv(N, R)
    tokens = block % blocks * R + tl.arange(0, R)
    return block // blocks, tokens, tokens < N, R


@triton.jit
def _tile(
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
    UNROLL: tl.constexpr,
):
    """Rows `rows` of `x` by weight rows `outs`, `[R, O]`."""
    if R == 1:
        x = x_ptr + tl.sum(rows, axis=0) * (2 * COLUMNS if KIND == "int4" else COLUMNS)
        sums = few(
            x, w_ptr, scale_ptr, zero_ptr, outs, stride, groups,
            COLUMNS, KIND, HALF, BLOCK_O, BLOCK_C, UNROLL,
        )[None, :]  # fmt: skip
    else:
        sums = many(
            x_ptr, rows, live, w_ptr, scale_ptr, zero_ptr, outs, stride, groups,
            COLUMNS, KIND, HALF, EXACT, R, BLOCK_O, BLOCK_C,
        )  # fmt: skip
    return sums


@triton.jit(do_not_specialize=["N", "P"])
def hidden_kernel(
    x_ptr,
    chosen_ptr,
    w_ptr,
    scale_ptr,
    zero_ptr,
    shared_gate_ptr,
    shared_gate_scale_ptr,
    shared_gate_zero_ptr,
    shared_up_ptr,
    shared_up_scale_ptr,
    shared_up_zero_ptr,
    hidden_ptr,
    N,
    P,
    INNER: tl.constexpr,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    HALF: tl.constexpr,
    EXACT: tl.constexpr,
    R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
    LINES: tl.constexpr,
    STEP: tl.constexpr,
    EARLY: tl.constexpr,
):
    """`silu(gate(x)) * up(x)` of a tile of I for one pair (R = 1), or for up to R pairs of an expert. Shared
    experts come first: which they are is known, and so their weights are asked for while nobody is chosen."""
    tile = tl.program_id(0) * BLOCK_O
    shared_blocks = tl.num_programs(1) - P
    pair, block = tl.program_id(1) - shared_blocks, tl.program_id(1)
    groups: tl.constexpr = COLUMNS // HALF if KIND == "int4" else 1
    columns = tile + tl.arange(0, BLOCK_O)
    outs = tl.minimum(columns, INNER - 1)
    if block < shared_blocks:
        shared, tokens, live, count = _shared_rows(block, N, R)
        rows = P + shared * N + tokens
        at = (shared * INNER).to(tl.int64)
        gate, up = shared_gate_ptr + at * COLUMNS, shared_up_ptr + at * COLUMNS
        gate_scale, up_scale = shared_gate_scale_ptr + at * groups, shared_up_scale_ptr + at * groups
        gate_zero, up_zero = shared_gate_zero_ptr + at * groups, shared_up_zero_ptr + at * groups
        if EARLY:
            ask_ahead(gate, outs, COLUMNS, COLUMNS, LINES, STEP)
            ask_ahead(up, outs, COLUMNS, COLUMNS, LINES, STEP)
            gdc_wait()
            gdc_launch_dependents()
    else:
        if EARLY:
            gdc_wait()
            gdc_launch_dependents()
        expert = tl.load(chosen_ptr + pair).to(tl.int64)
        at = expert * 2 * INNER
        gate, up = w_ptr + at * COLUMNS, w_ptr + (at + INNER) * COLUMNS
        gate_scale, up_scale = scale_ptr + at * groups, scale_ptr + (at + INNER) * groups
        gate_zero, up_zero = zero_ptr + at * groups, zero_ptr + (at + INNER) * groups
        rows, live, count = _members(chosen_ptr, expert, pair, P, R, BLOCK_P)
        tokens = rows // K
    if count > 0:
        gates = _tile(
            x_ptr, tokens, live, gate, gate_scale, gate_zero, outs, COLUMNS, groups,
            COLUMNS, KIND, HALF, EXACT, R, BLOCK_O, BLOCK_C, UNROLL,
        )  # fmt: skip
        ups = _tile(
            x_ptr, tokens, live, up, up_scale, up_zero, outs, COLUMNS, groups,
            COLUMNS, KIND, HALF, EXACT, R, BLOCK_O, BLOCK_C, UNROLL,
        )  # fmt: skip
        hidden = gates / (1.0 + tl.exp(-gates)) * ups
        places = hidden_ptr + rows[:, None] * INNER + columns[None, :]
        tl.store(
            places, hidden.to(hidden_ptr.dtype.element_ty), mask=live[:, None] & (columns < INNER)[None, :]
        )


@triton.jit(do_not_specialize=["N", "P"])
def outputs_kernel(
    hidden_ptr,
    chosen_ptr,
    w_ptr,
    scale_ptr,
    zero_ptr,
    shared_ptr,
    shared_scale_ptr,
    shared_zero_ptr,
    out_ptr,
    N,
    P,
    D: tl.constexpr,
    S: tl.constexpr,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    HALF: tl.constexpr,
    EXACT: tl.constexpr,
    R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
    LINES: tl.constexpr,
    STEP: tl.constexpr,
    EARLY: tl.constexpr,
):
    """A tile of D of `down(hidden)`, float32, for one pair (R = 1), or for up to R pairs of an expert. Who is
    chosen was written before the kernel ahead began, and is enough to ask for weights by."""
    tile, block = tl.program_id(0) * BLOCK_O, tl.program_id(1)
    columns = tile + tl.arange(0, BLOCK_O)
    outs = tl.minimum(columns, D - 1)
    if EARLY:
        if block < P:
            expert = tl.load(chosen_ptr + block, cache_modifier=".cg").to(tl.int64)
            ask_ahead(w_ptr + expert * D * COLUMNS, outs, COLUMNS, COLUMNS, LINES, STEP)
        else:
            stripe = shared_ptr + (block - P) // tl.cdiv(N, R) * COLUMNS
            ask_ahead(stripe, outs, S * COLUMNS, COLUMNS, LINES, STEP)
        gdc_wait()
        gdc_launch_dependents()
    if block < P:
        expert = tl.load(chosen_ptr + block).to(tl.int64)
        groups = COLUMNS // HALF if KIND == "int4" else 1
        stride = COLUMNS
        at = expert * D
        down, scale, zero = w_ptr + at * COLUMNS, scale_ptr + at * groups, zero_ptr + at * groups
        rows, live, count = _members(chosen_ptr, expert, block, P, R, BLOCK_P)
    else:  # a shared expert is a stripe of columns
        shared, tokens, live, count = _shared_rows(block - P, N, R)
        rows = P + shared * N + tokens
        groups = S * (COLUMNS // HALF) if KIND == "int4" else 1
        stride = S * COLUMNS
        at = (shared * (COLUMNS // HALF if KIND == "int4" else 0)).to(tl.int64)
        down, scale, zero = shared_ptr + shared * COLUMNS, shared_scale_ptr + at, shared_zero_ptr + at
    if count > 0:
        outputs = _tile(
            hidden_ptr, rows, live, down, scale, zero, outs, stride, groups,
            COLUMNS, KIND, HALF, EXACT, R, BLOCK_O, BLOCK_C, UNROLL,
        )  # fmt: skip
        places = out_ptr + rows[:, None] * D + columns[None, :]
        tl.store(places, outputs, mask=live[:, None] & (columns < D)[None, :])


@triton.jit(do_not_specialize=["N", "P"])
def sum_kernel(
    pairs_ptr,
    weights_ptr,
    out_ptr,
    N,
    P,
    D,
    K: tl.constexpr,
    S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The weighted sum over a token's pairs in their order, plus the shared experts'."""
    token, columns = tl.program_id(1), tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    there = columns < D
    let_in(EARLY)
    total = tl.zeros([BLOCK_D], dtype=tl.float32)
    for place in tl.static_range(K):
        pair = token * K + place
        total += tl.load(weights_ptr + pair) * tl.load(pairs_ptr + pair * D + columns, mask=there, other=0.0)
    for shared in tl.static_range(S):
        total += tl.load(pairs_ptr + (P + shared * N + token) * D + columns, mask=there, other=0.0)
    tl.store(out_ptr + token * D + columns, total.to(out_ptr.dtype.element_ty), mask=there)
