"""The Triton kernels of latent attention over a pool of slots, launched by `mla_decode`.

Absorb: normalize, rotate and write the new slots, and project the queries into the latent space. Attention:
the heads of a token read the slots of its sequence, CHUNK at a time. Combine: join the chunks of a token.
Project: out of the latent space.

A token's bits depend on nothing but its own numbers and those of its sequence: products are one chain of
tensor core steps over ascending inputs, chunks are folded in ascending order, and `_fold` is compiled without
fused multiply-adds, so that it rounds alike in every kernel. Positions, starts and rotary tables are older
than the pass, so they may be loaded early, like weights (see pdl.py).

N tokens, S slots of a chunk, H heads, R rank of the latent, P dimensions of the rotary part, C = R + P, E
dimensions of the rest of a query or key, V dimensions of a value, M = tokens x heads of a tile.
"""

# Triton kernels are not what their Python types say:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportCallIssue=false

import triton
import triton.language as tl

from .pdl import gdc_launch_dependents, gdc_wait, prefetch_l2, trigger_then_wait


@triton.jit
def _rotate_pairs(x_ptr, cos, sin, pairs, mask):
    """Rotated interleaved pairs of `x`: the first and the second numbers of the pairs, float32."""
    even = tl.load(x_ptr + 2 * pairs, mask=mask, other=0.0).to(tl.float32)
    odd = tl.load(x_ptr + 2 * pairs + 1, mask=mask, other=0.0).to(tl.float32)
    return even * cos - odd * sin, odd * cos + even * sin


@triton.jit
def _write_slot(
    q_row, kv_row, norm_ptr, cos_ptr, sin_ptr, position, slot, query, eps,
    H: tl.constexpr, E: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
    PADDED_H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Write a token's `slot`, and the rotated parts of its heads into `query`, `[H, C]`."""
    dtype = slot.dtype.element_ty
    heads, pairs, ranks = tl.arange(0, PADDED_H)[:, None], tl.arange(0, BLOCK_P // 2), tl.arange(0, BLOCK_R)
    mask = pairs < P // 2
    cos = tl.load(cos_ptr + position * P + pairs, mask=mask, other=0.0)
    sin = tl.load(sin_ptr + position * P + pairs, mask=mask, other=0.0)
    gain = tl.load(norm_ptr + ranks, mask=ranks < R, other=0.0).to(tl.float32)
    trigger_then_wait(PDL)
    x = tl.load(kv_row + ranks, mask=ranks < R, other=0.0).to(tl.float32)
    x = (x * tl.rsqrt(tl.sum(x * x, axis=0) / R + eps)).to(dtype).to(tl.float32) * gain
    tl.store(slot + ranks, x.to(dtype), mask=ranks < R)
    low, high = _rotate_pairs(kv_row + R, cos, sin, pairs, mask)
    tl.store(slot + R + pairs, low.to(dtype), mask=mask)
    tl.store(slot + R + P // 2 + pairs, high.to(dtype), mask=mask)
    mask = mask[None, :] & (heads < H)
    low, high = _rotate_pairs(q_row + heads * (E + P) + E, cos[None, :], sin[None, :], pairs[None, :], mask)
    rotated = query + heads * (R + P) + R + pairs[None, :]
    tl.store(rotated, low.to(dtype), mask=mask)
    tl.store(rotated + P // 2, high.to(dtype), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def absorb_kernel(
    q_ptr, kv_ptr, norm_ptr, weight_ptr, cos_ptr, sin_ptr, positions_ptr, starts_ptr, slots_ptr, query_ptr,
    eps, q_stride, kv_stride, tokens,
    H: tl.constexpr, E: tl.constexpr, V: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
    FLOAT32: tl.constexpr, PADDED_H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, TILE_R: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The first programs, one per token, write the slots and rotate the queries; each other one projects a
    tile of tokens of one head into a tile of the latent space."""
    program = tl.program_id(0)
    if program < tokens:
        position, start = tl.load(positions_ptr + program), tl.load(starts_ptr + program)
        token = program.to(tl.int64)
        _write_slot(
            q_ptr + token * q_stride, kv_ptr + token * kv_stride, norm_ptr, cos_ptr, sin_ptr, position,
            slots_ptr + (start + position) * (R + P), query_ptr + token * (H * (R + P)), eps,
            H, E, R, P, PADDED_H, BLOCK_R, BLOCK_P, PDL,
        )  # fmt: skip
    else:
        program -= tokens
        head, program = program % H, program // H
        tiles: tl.constexpr = (R + TILE_R - 1) // TILE_R
        ranks, dims = program % tiles * TILE_R + tl.arange(0, TILE_R), tl.arange(0, BLOCK_E)
        token_N = (program // tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        in_rank, in_tokens = (ranks < R)[None, :], (token_N < tokens)[:, None]
        weight = weight_ptr + (head * (E + V) + dims)[:, None] * R + ranks[None, :]
        w_ER = tl.load(weight, mask=(dims < E)[:, None] & in_rank, other=0.0)
        trigger_then_wait(PDL)
        dtype: tl.constexpr = tl.float32 if FLOAT32 else query_ptr.dtype.element_ty
        query = q_ptr + token_N[:, None] * q_stride + head * (E + P) + dims[None, :]
        q_NE = tl.load(query, mask=in_tokens & (dims < E)[None, :], other=0.0)
        sums_NR = tl.dot(q_NE.to(dtype), w_ER.to(dtype), input_precision="ieee")
        for first in tl.static_range(BLOCK_E, E, BLOCK_E):
            inside = first + dims < E
            q_NE = tl.load(query + first, mask=in_tokens & inside[None, :], other=0.0)
            w_ER = tl.load(weight + first * R, mask=inside[:, None] & in_rank, other=0.0)
            sums_NR = tl.dot(q_NE.to(dtype), w_ER.to(dtype), sums_NR, input_precision="ieee")
        out = query_ptr + (token_N[:, None] * H + head) * (R + P) + ranks[None, :]
        tl.store(out, sums_NR.to(query_ptr.dtype.element_ty), mask=in_tokens & in_rank)


@triton.jit
def _attend_to_chunk(q_low, q_high, q_rope, low_SR, high_SR, rope_SP, live_MS, scale):
    """Maximum score (base 2), sum of weights and weighted sums of the two halves of the latents of a chunk;
    -inf and zeros for a token none of whose slots are `live`. Weights are rounded, then summed by tensor
    cores, whose order does not depend on the tile."""
    scores_MS = tl.dot(q_low, tl.trans(low_SR), input_precision="ieee")
    scores_MS = tl.dot(q_high, tl.trans(high_SR), scores_MS, input_precision="ieee")
    scores_MS = tl.dot(q_rope, tl.trans(rope_SP), scores_MS, input_precision="ieee")
    scores_MS = tl.where(live_MS, scores_MS * scale, -float("inf"))
    max_M = tl.max(scores_MS, axis=1)
    weights_MS = tl.exp2(scores_MS - tl.where(max_M == -float("inf"), 0.0, max_M)[:, None]).to(low_SR.dtype)
    ones = tl.full([low_SR.shape[0], 16], 1.0, dtype=low_SR.dtype)
    total_M = tl.max(tl.dot(weights_MS, ones, input_precision="ieee"), axis=1)
    low_MR = tl.dot(weights_MS, low_SR, input_precision="ieee")
    return max_M, total_M, low_MR, tl.dot(weights_MS, high_SR, input_precision="ieee")


@triton.jit
def _fold(max_M, chunk_max_M):
    """The maximum so far, and the factors of the sums so far and of a chunk's."""
    new_max_M = tl.maximum(max_M, chunk_max_M)
    return new_max_M, tl.exp2(max_M - new_max_M), tl.exp2(chunk_max_M - new_max_M)


@triton.jit(do_not_specialize=["tokens", "chunks"])
def attention_kernel(
    query_ptr, slots_ptr, positions_ptr, starts_ptr, out_ptr, stats_ptr, scale, tokens, chunks,
    H: tl.constexpr, R: tl.constexpr, P: tl.constexpr, CHUNK: tl.constexpr, SPLIT: tl.constexpr,
    TOKENS: tl.constexpr, FLOAT32: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr, LINES: tl.constexpr, STEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A block of heads of TOKENS tokens, consecutive ones of one sequence. SPLIT: over one chunk of their
    slots; weighted sums of latents go to `out`, `[N, H, chunks, R]`, the maximum score and the sum of weights
    to `stats`, `[N, H, chunks, 2]`. Else over all slots; the mean latents go to `out`, `[N, H, R]`."""
    HALF: tl.constexpr = BLOCK_R // 2
    # The last tokens of a prompt, which take longest, come first.
    first_token = (tl.num_programs(2) - 1 - tl.program_id(2)) * TOKENS
    m = tl.arange(0, TOKENS * BLOCK_H)
    token_M, head_M = (first_token + m // BLOCK_H).to(tl.int64), tl.program_id(1) * BLOCK_H + m % BLOCK_H
    mask_M = (token_M < tokens) & (head_M < H)
    position_M = tl.load(positions_ptr + token_M, mask=token_M < tokens, other=0).to(tl.int32)
    start_M = tl.load(starts_ptr + token_M, mask=token_M < tokens, other=-1)
    start = tl.load(starts_ptr + first_token)
    last = tl.max(tl.where(start_M == start, position_M, 0), axis=0)  # padding may follow a sequence's tokens
    sequence = slots_ptr + start * (R + P)
    s, rope_dims = tl.arange(0, CHUNK), tl.arange(0, BLOCK_P)
    low, high = tl.arange(0, HALF), HALF + tl.arange(0, HALF)
    first_chunk, end_chunk = 0, last // CHUNK + 1
    if SPLIT:
        first_chunk = tl.program_id(0)
        if PDL:
            slot = tl.minimum(first_chunk * CHUNK + s, last)
            prefetch_l2(sequence, slot, R + P, R + P, LINES, STEP)
        end_chunk = tl.minimum(end_chunk, first_chunk + 1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    dtype: tl.constexpr = tl.float32 if FLOAT32 else query_ptr.dtype.element_ty
    query = query_ptr + (token_M * H + head_M)[:, None] * (R + P)
    mask_M1 = mask_M[:, None]
    q_low = tl.load(query + low[None, :], mask=mask_M1 & (low < R)[None, :], other=0.0).to(dtype)
    q_high = tl.load(query + high[None, :], mask=mask_M1 & (high < R)[None, :], other=0.0).to(dtype)
    q_rope = tl.load(query + R + rope_dims[None, :], mask=mask_M1 & (rope_dims < P)[None, :], other=0.0)
    max_M = tl.full([TOKENS * BLOCK_H], -float("inf"), dtype=tl.float32)
    total_M = tl.zeros([TOKENS * BLOCK_H], dtype=tl.float32)
    low_MR = tl.zeros([TOKENS * BLOCK_H, HALF], dtype=tl.float32)
    high_MR = tl.zeros([TOKENS * BLOCK_H, HALF], dtype=tl.float32)
    for chunk in range(first_chunk, end_chunk):
        slot = chunk * CHUNK + s
        pointers, inside = sequence + slot[:, None] * (R + P), (slot <= last)[:, None]
        low_SR = tl.load(pointers + low[None, :], mask=inside & (low < R)[None, :], other=0.0)
        high_SR = tl.load(pointers + high[None, :], mask=inside & (high < R)[None, :], other=0.0)
        rope_SP = tl.load(
            pointers + R + rope_dims[None, :], mask=inside & (rope_dims < P)[None, :], other=0.0
        )
        live_MS = slot[None, :] <= position_M[:, None]
        chunk_max_M, chunk_total_M, chunk_low_MR, chunk_high_MR = _attend_to_chunk(
            q_low, q_high, q_rope.to(dtype), low_SR.to(dtype), high_SR.to(dtype), rope_SP.to(dtype),
            live_MS, scale,
        )  # fmt: skip
        if SPLIT:
            max_M, total_M, low_MR, high_MR = chunk_max_M, chunk_total_M, chunk_low_MR, chunk_high_MR
        else:
            max_M, before_M, new_M = _fold(max_M, chunk_max_M)
            total_M = total_M * before_M + chunk_total_M * new_M
            low_MR = low_MR * before_M[:, None] + chunk_low_MR * new_M[:, None]
            high_MR = high_MR * before_M[:, None] + chunk_high_MR * new_M[:, None]
    out = token_M * H + head_M
    if SPLIT:
        out = out * chunks + first_chunk
        mask_M = mask_M & (first_chunk < end_chunk)
        tl.store(stats_ptr + 2 * out, max_M, mask=mask_M)
        tl.store(stats_ptr + 2 * out + 1, total_M, mask=mask_M)
    else:
        low_MR, high_MR = low_MR / total_M[:, None], high_MR / total_M[:, None]
    out_dtype: tl.constexpr = out_ptr.dtype.element_ty
    out, mask_M1 = out_ptr + out[:, None] * R, mask_M[:, None]
    tl.store(out + low[None, :], low_MR.to(out_dtype), mask=mask_M1 & (low < R)[None, :])
    tl.store(out + high[None, :], high_MR.to(out_dtype), mask=mask_M1 & (high < R)[None, :])


@triton.jit(do_not_specialize=["chunks"])
def combine_kernel(
    sums_ptr, stats_ptr, positions_ptr, weight_ptr, out_ptr, chunks,
    H: tl.constexpr, E: tl.constexpr, V: tl.constexpr, R: tl.constexpr, CHUNK: tl.constexpr,
    PROJECT: tl.constexpr, FLOAT32: tl.constexpr, BLOCK_R: tl.constexpr, TILE_V: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """The mean latents of one head of a token, `[R]`, from its chunks; if PROJECT, a tile of the head's
    output, `[V]`."""
    tile, head, token = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    count = tl.load(positions_ptr + token).to(tl.int32) // CHUNK + 1
    first, ranks = (token * H + head) * chunks, tl.arange(0, BLOCK_R)
    values = tile * TILE_V + tl.arange(0, TILE_V)
    if PROJECT:
        weight = weight_ptr + (head * (E + V) + E + values)[:, None] * R + ranks[None, :]
        w_VR = tl.load(weight, mask=(values < V)[:, None] & (ranks < R)[None, :], other=0.0)
    trigger_then_wait(PDL)
    max_M = tl.full([1], -float("inf"), dtype=tl.float32)
    total_M = tl.zeros([1], dtype=tl.float32)
    sums_MR = tl.zeros([1, BLOCK_R], dtype=tl.float32)
    for chunk in tl.range(0, count, num_stages=9):  # without it, ptxas would load one after the other
        stats = stats_ptr + 2 * (first + chunk) + tl.arange(0, 1)
        sums = sums_ptr + (first + chunk) * R + ranks[None, :]
        chunk_MR = tl.load(sums, mask=(ranks < R)[None, :], other=0.0)
        max_M, before_M, new_M = _fold(max_M, tl.load(stats))
        total_M = total_M * before_M + tl.load(stats + 1) * new_M
        sums_MR = sums_MR * before_M[:, None] + chunk_MR * new_M[:, None]
    dtype = out_ptr.dtype.element_ty
    latent_MR = (sums_MR / total_M[:, None]).to(dtype)
    out = token * H + head
    if PROJECT:
        dot_dtype: tl.constexpr = tl.float32 if FLOAT32 else dtype
        copies = tl.arange(0, 16)[:, None]  # the least number of rows of a product
        x_MR = tl.broadcast_to(latent_MR, (16, BLOCK_R)).to(dot_dtype)
        out_MV = tl.dot(x_MR, tl.trans(w_VR.to(dot_dtype)), input_precision="ieee")
        mask = (copies == 0) & (values < V)[None, :]
        tl.store(out_ptr + out * V + values[None, :] + 0 * copies, out_MV.to(dtype), mask=mask)
    else:
        tl.store(out_ptr + out * R + ranks[None, :], latent_MR, mask=(ranks < R)[None, :])


@triton.jit(do_not_specialize=["tokens"])
def project_kernel(
    latent_ptr, weight_ptr, out_ptr, tokens,
    H: tl.constexpr, E: tl.constexpr, V: tl.constexpr, R: tl.constexpr, FLOAT32: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, TILE_V: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of tokens of one head out of the latent space, `[N, V]`."""
    head = tl.program_id(1)
    token_N = tl.program_id(2).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    values, ranks = tl.program_id(0) * TILE_V + tl.arange(0, TILE_V), tl.arange(0, BLOCK_R)
    in_tokens, in_values = (token_N < tokens)[:, None], (values < V)[None, :]
    latent = latent_ptr + (token_N * H + head)[:, None] * R + ranks[None, :]
    weight = weight_ptr + (head * (E + V) + E + values)[None, :] * R + ranks[:, None]
    trigger_then_wait(PDL)
    dtype: tl.constexpr = tl.float32 if FLOAT32 else out_ptr.dtype.element_ty
    sums_NV = tl.zeros([BLOCK_N, TILE_V], dtype=tl.float32)
    for first in range(0, R, BLOCK_R):
        inside = first + ranks < R
        x_NR = tl.load(latent + first, mask=in_tokens & inside[None, :], other=0.0).to(dtype)
        w_RV = tl.load(weight + first, mask=inside[:, None] & in_values, other=0.0).to(dtype)
        sums_NV = tl.dot(x_NR, w_RV, sums_NV, input_precision="ieee")
    out = out_ptr + (token_N * H + head)[:, None] * V + values[None, :]
    tl.store(out, sums_NV.to(out_ptr.dtype.element_ty), mask=in_tokens & in_values)
