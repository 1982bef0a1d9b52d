"""The three Triton kernels of latent attention of one query per row over the cache, launched by `mla_decode`.

Absorb: normalize, rotate and write the new slot, and project the queries into the latent space. Attention:
all heads of a row read the same slots once (split-K; splits beyond a row's own position return at once).
Combine: combine the splits and project the result out of the latent space. Positions are read on the device.
They, the rotary tables and all slots but the new one are older than the step, so they may be loaded early,
like weights (see pdl.py).

B rows, S cache slots, H heads, R rank of the latent, P dimensions of the rotary part, C = R + P, N dimensions
of the rest of a query or key, V dimensions of a value, G splits read at a time.
"""

# Triton kernels are not what their Python types say:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportCallIssue=false

import triton
import triton.language as tl

from .pdl import trigger_then_wait


@triton.jit
def _rotate_pairs(x_ptr, cos, sin, pairs, mask):
    """Rotated interleaved pairs of `x`: the first and the second numbers of the pairs, float32."""
    even = tl.load(x_ptr + 2 * pairs, mask=mask, other=0.0).to(tl.float32)
    odd = tl.load(x_ptr + 2 * pairs + 1, mask=mask, other=0.0).to(tl.float32)
    return even * cos - odd * sin, odd * cos + even * sin


@triton.jit(do_not_specialize=["position_stride", "slots", "last"])
def absorb_kernel(
    q_ptr,
    kv_ptr,
    norm_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    slots_ptr,
    query_ptr,
    eps,
    q_stride,
    kv_stride,
    row_stride,
    position_stride,
    slots,
    last,
    H: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    ROTARY_OF_SLOTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TILE_R: tl.constexpr,
    PDL: tl.constexpr,
):
    """Block 0 writes a row's new slot, blocks 1 to H rotate the query of a head, and the others project tiles
    of a head's query into the latent space. Cosines and sines are those of the rows' positions or, if
    ROTARY_OF_SLOTS, those of all positions up to `last`."""
    block, row = tl.program_id(0), tl.program_id(1)
    dtype = query_ptr.dtype.element_ty
    q_row, kv_row = q_ptr + row.to(tl.int64) * q_stride, kv_ptr + row.to(tl.int64) * kv_stride
    pairs = tl.arange(0, BLOCK_P)
    mask = pairs < P // 2
    if block <= H:
        position = tl.load(positions_ptr + row * position_stride)
        table_row = tl.minimum(tl.maximum(position, 0), last) if ROTARY_OF_SLOTS else row
        cos = tl.load(cos_ptr + table_row * P + pairs, mask=mask, other=0.0)
        sin = tl.load(sin_ptr + table_row * P + pairs, mask=mask, other=0.0)
        if block == 0:
            ranks = tl.arange(0, BLOCK_R)
            gain = tl.load(norm_ptr + ranks, mask=ranks < R, other=0.0).to(tl.float32)
            trigger_then_wait(PDL)
            inside = (position >= 0) & (position < slots)
            x = tl.load(kv_row + ranks, mask=ranks < R, other=0.0).to(tl.float32)
            x = (x * tl.rsqrt(tl.sum(x * x, axis=0) / R + eps)).to(dtype).to(tl.float32) * gain
            slot = slots_ptr + row.to(tl.int64) * row_stride + position * (R + P)
            tl.store(slot + ranks, x.to(dtype), mask=(ranks < R) & inside)
            low, high = _rotate_pairs(kv_row + R, cos, sin, pairs, mask)
            tl.store(slot + R + pairs, low.to(dtype), mask=mask & inside)
            tl.store(slot + R + P // 2 + pairs, high.to(dtype), mask=mask & inside)
        else:
            head = block - 1
            trigger_then_wait(PDL)
            low, high = _rotate_pairs(q_row + head * (N + P) + N, cos, sin, pairs, mask)
            query = query_ptr + (row * H + head) * (R + P) + R
            tl.store(query + pairs, low.to(dtype), mask=mask)
            tl.store(query + P // 2 + pairs, high.to(dtype), mask=mask)
    else:
        head, tile = (block - 1 - H) % H, (block - 1 - H) // H
        ranks = tile * TILE_R + tl.arange(0, TILE_R)
        # Every column loads the whole query: from L1, but in the layout of the products.
        dims = tl.arange(0, BLOCK_N)[:, None] + tl.zeros([1, TILE_R], dtype=tl.int32)
        in_rank = (ranks < R)[None, :]
        weight_block = weight_ptr + (head * (N + V) + dims) * R + ranks[None, :]
        weight = tl.load(weight_block, mask=(dims < N) & in_rank, other=0.0)
        trigger_then_wait(PDL)
        q_head = q_row + head * (N + P)
        q = tl.load(q_head + dims, mask=dims < N, other=0.0)
        sums = q.to(tl.float32) * weight.to(tl.float32)
        for start in tl.static_range(BLOCK_N, N, BLOCK_N):
            inside = start + dims < N
            q = tl.load(q_head + start + dims, mask=inside, other=0.0)
            weight = tl.load(weight_block + start * R, mask=inside & in_rank, other=0.0)
            sums += q.to(tl.float32) * weight.to(tl.float32)
        query = query_ptr + (row * H + head) * (R + P)
        tl.store(query + ranks, tl.sum(sums, axis=0).to(dtype), mask=ranks < R)


@triton.jit
def _load_slots(
    row_ptr, slots, ranks, rope_dims, mask, R: tl.constexpr, P: tl.constexpr, BYPASS_L1: tl.constexpr
):
    """Latents `[S, R]` and rotary keys `[S, P]` of slots of a row, where `mask`. BYPASS_L1 is for slots that
    the preceding kernel writes: L1 may hold a stale copy, loaded together with neighbouring slots."""
    cache: tl.constexpr = ".cg" if BYPASS_L1 else ""
    slot_ptr, mask_S1 = row_ptr + slots[:, None] * (R + P), mask[:, None]
    mask_SR, mask_SP = mask_S1 & (ranks < R)[None, :], mask_S1 & (rope_dims < P)[None, :]
    latent_SR = tl.load(slot_ptr + ranks[None, :], mask=mask_SR, other=0.0, cache_modifier=cache)
    k_rope_SP = tl.load(slot_ptr + R + rope_dims[None, :], mask=mask_SP, other=0.0, cache_modifier=cache)
    return latent_SR, k_rope_SP


@triton.jit
def _online_softmax(q_HR, q_HP, latent_SR, k_rope_SP, live, scale, max_H, total_H, out_HR):
    """One step of the online softmax: the running maximum, sum of weights and weighted sum of latents,
    updated by the slots of a tile that are `live`."""
    scores_HS = tl.dot(q_HR, tl.trans(latent_SR), input_precision="ieee")
    scores_HS = tl.dot(q_HP, tl.trans(k_rope_SP), scores_HS, input_precision="ieee")
    scores_HS = tl.where(live[None, :], scores_HS * scale, -float("inf"))
    new_max_H = tl.maximum(max_H, tl.max(scores_HS, axis=1))
    weights_HS = tl.exp2(scores_HS - new_max_H[:, None])
    rescale_H = tl.exp2(max_H - new_max_H)
    total_H = total_H * rescale_H + tl.sum(weights_HS, axis=1)
    weights_HS = weights_HS.to(latent_SR.dtype)
    out_HR = tl.dot(weights_HS, latent_SR, out_HR * rescale_H[:, None], input_precision="ieee")
    return new_max_H, total_H, out_HR


@triton.jit(do_not_specialize=["position_stride", "splits", "slots"])
def attention_kernel(
    query_ptr,
    slots_ptr,
    positions_ptr,
    sums_ptr,
    row_max_ptr,
    totals_ptr,
    scale,
    row_stride,
    position_stride,
    splits,
    slots,
    H: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    SPLIT: tl.constexpr,
    FLOAT32: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PDL: tl.constexpr,
):
    """A block of heads over one split of a row's slots: the weighted sum of latents, the maximum score (base
    2), and the sum of weights relative to it. A split of one tile is loaded before the wait, except for the
    new slot, which the preceding kernel writes."""
    split, block, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions_ptr + row * position_stride).to(tl.int32)
    length = tl.minimum(position + 1, slots)
    first = split * SPLIT
    heads = block * BLOCK_H + tl.arange(0, BLOCK_H)
    ranks, rope_dims = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    row_ptr = slots_ptr + row.to(tl.int64) * row_stride
    tile = first + tl.arange(0, BLOCK_S)
    live = tile < length
    if SPLIT == BLOCK_S:
        older = live & (tile != position)
        latent_SR, k_rope_SP = _load_slots(row_ptr, tile, ranks, rope_dims, older, R, P, False)
    trigger_then_wait(PDL)
    if first < length:
        dtype: tl.constexpr = tl.float32 if FLOAT32 else query_ptr.dtype.element_ty
        mask_H1, mask_1R, mask_1P = (heads < H)[:, None], (ranks < R)[None, :], (rope_dims < P)[None, :]
        query = query_ptr + (row * H + heads[:, None]) * (R + P)
        q_HR = tl.load(query + ranks[None, :], mask=mask_H1 & mask_1R, other=0.0).to(dtype)
        q_HP = tl.load(query + R + rope_dims[None, :], mask=mask_H1 & mask_1P, other=0.0).to(dtype)
        max_H = tl.full([BLOCK_H], -float("inf"), dtype=tl.float32)
        total_H = tl.zeros([BLOCK_H], dtype=tl.float32)
        out_HR = tl.zeros([BLOCK_H, BLOCK_R], dtype=tl.float32)
        if SPLIT == BLOCK_S:
            newest = live & (tile == position)
            new_SR, new_SP = _load_slots(row_ptr, tile, ranks, rope_dims, newest, R, P, True)
            latent_SR = tl.where(newest[:, None], new_SR, latent_SR).to(dtype)
            k_rope_SP = tl.where(newest[:, None], new_SP, k_rope_SP).to(dtype)
            max_H, total_H, out_HR = _online_softmax(
                q_HR, q_HP, latent_SR, k_rope_SP, live, scale, max_H, total_H, out_HR
            )
        else:
            for start in range(0, SPLIT, BLOCK_S):
                live = start + tile < length
                latent_SR, k_rope_SP = _load_slots(row_ptr, start + tile, ranks, rope_dims, live, R, P, False)
                max_H, total_H, out_HR = _online_softmax(
                    q_HR, q_HP, latent_SR.to(dtype), k_rope_SP.to(dtype), live, scale, max_H, total_H, out_HR
                )
        partial_H = (row * H + heads) * splits + split
        tl.store(row_max_ptr + partial_H, max_H, mask=heads < H)
        tl.store(totals_ptr + partial_H, total_H, mask=heads < H)
        tl.store(sums_ptr + partial_H[:, None] * R + ranks[None, :], out_HR, mask=mask_H1 & mask_1R)


@triton.jit(do_not_specialize=["position_stride", "splits"])
def combine_kernel(
    sums_ptr,
    row_max_ptr,
    totals_ptr,
    positions_ptr,
    weight_ptr,
    out_ptr,
    position_stride,
    splits,
    H: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    R: tl.constexpr,
    SPLIT: tl.constexpr,
    PROJECT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_G: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE_V: tl.constexpr,
    PDL: tl.constexpr,
):
    """The combined splits of one head of a row, `[R]`; if PROJECT, a tile of the head's output, `[V]`."""
    tile, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = tl.load(positions_ptr + row * position_stride).to(tl.int32) // SPLIT + 1
    count = tl.minimum(count, splits)
    first, ranks = (row * H + head) * splits, tl.arange(0, BLOCK_R)
    values = tile * TILE_V + tl.arange(0, TILE_V)
    if PROJECT:
        weight_block = weight_ptr + (head * (N + V) + N + values)[:, None] * R + ranks[None, :]
        inside = (values < V)[:, None] & (ranks < R)[None, :]
        weight = tl.load(weight_block, mask=inside, other=0.0)
    trigger_then_wait(PDL)
    every = tl.arange(0, SPLITS)
    row_max = tl.load(row_max_ptr + first + every, mask=every < count, other=-float("inf"))
    totals = tl.load(totals_ptr + first + every, mask=every < count, other=0.0)
    largest = tl.max(row_max, axis=0)
    total = tl.sum(tl.exp2(row_max - largest) * totals, axis=0)
    sums_GR = tl.zeros([BLOCK_G, BLOCK_R], dtype=tl.float32)
    for start in range(0, count, BLOCK_G):
        some = start + tl.arange(0, BLOCK_G)
        some_max = tl.load(row_max_ptr + first + some, mask=some < count, other=-float("inf"))
        mask = (some < count)[:, None] & (ranks < R)[None, :]
        block = sums_ptr + (first + some)[:, None] * R + ranks[None, :]
        sums_GR += tl.exp2(some_max - largest)[:, None] * tl.load(block, mask=mask, other=0.0)
    latent_R = tl.sum(sums_GR, axis=0) / total
    dtype = out_ptr.dtype.element_ty
    if PROJECT:
        out_V = tl.sum(weight.to(tl.float32) * latent_R[None, :], axis=1)
        tl.store(out_ptr + (row * H + head) * V + values, out_V.to(dtype), mask=values < V)
    else:
        tl.store(out_ptr + (row * H + head) * R + ranks, latent_R.to(dtype), mask=ranks < R)
