"""The three Triton kernels of latent attention of one query a row over the cache (see `attend_latent`).

Enter: the new slot is normalised, rotated and written, and queries go into the latent's space. Attend: all
heads of a row read the same slots once; the slots are cut into splits, and splits beyond a row's own
position end at once. Leave: splits are put together, and what was gathered comes back from the latent's
space. Positions are read on the device; they, the rotary tables and all slots but the new one are older than
the step, and read ahead as weights are (see overlap.py).

B rows, S cache slots, H heads, R rank of the latent, P dimensions of the rotary part, C = R + P, N dimensions
of the rest of a query or key, V dimensions of a value.
"""

# What Triton compiles is not what its Python types say:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportCallIssue=false

import triton
import triton.language as tl

from .pdl import let_in


@triton.jit
def _turned(x_ptr, cos, sin, pairs, mask):
    """Neighbouring pairs of `x`, turned: their first and their second numbers, float32."""
    even = tl.load(x_ptr + 2 * pairs, mask=mask, other=0.0).to(tl.float32)
    odd = tl.load(x_ptr + 2 * pairs + 1, mask=mask, other=0.0).to(tl.float32)
    return even * cos - odd * sin, odd * cos + even * sin


@triton.jit(do_not_specialize=["position_stride", "slots", "last"])
def enter_kernel(
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
    TABLES: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TILE_R: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Block 0 writes a row's new slot, 1 to H turn the rotary queries, the others make the latent ones.
    Cosines and sines are those of the rows or, if TABLES, of all positions up to `last`."""
    block, row = tl.program_id(0), tl.program_id(1)
    kind = query_ptr.dtype.element_ty
    q_row, kv_row = q_ptr + row.to(tl.int64) * q_stride, kv_ptr + row.to(tl.int64) * kv_stride
    pairs = tl.arange(0, BLOCK_P)
    mask = pairs < P // 2
    if block <= H:
        position = tl.load(positions_ptr + row * position_stride)
        angles = tl.minimum(tl.maximum(position, 0), last) if TABLES else row
        cos = tl.load(cos_ptr + angles * P + pairs, mask=mask, other=0.0)
        sin = tl.load(sin_ptr + angles * P + pairs, mask=mask, other=0.0)
        if block == 0:
            places = tl.arange(0, BLOCK_R)
            gain = tl.load(norm_ptr + places, mask=places < R, other=0.0).to(tl.float32)
            let_in(EARLY)
            inside = (position >= 0) & (position < slots)
            x = tl.load(kv_row + places, mask=places < R, other=0.0).to(tl.float32)
            x = (x * tl.rsqrt(tl.sum(x * x, axis=0) / R + eps)).to(kind).to(tl.float32) * gain
            slot = slots_ptr + row.to(tl.int64) * row_stride + position * (R + P)
            tl.store(slot + places, x.to(kind), mask=(places < R) & inside)
            low, high = _turned(kv_row + R, cos, sin, pairs, mask)
            tl.store(slot + R + pairs, low.to(kind), mask=mask & inside)
            tl.store(slot + R + P // 2 + pairs, high.to(kind), mask=mask & inside)
        else:
            head = block - 1
            let_in(EARLY)
            low, high = _turned(q_row + head * (N + P) + N, cos, sin, pairs, mask)
            query = query_ptr + (row * H + head) * (R + P) + R
            tl.store(query + pairs, low.to(kind), mask=mask)
            tl.store(query + P // 2 + pairs, high.to(kind), mask=mask)
    else:
        head, tile = (block - 1 - H) % H, (block - 1 - H) // H
        columns = tile * TILE_R + tl.arange(0, TILE_R)
        # Every column loads the query for itself: from the nearest cache, but in its own layout.
        places = tl.arange(0, BLOCK_N)[:, None] + tl.zeros([1, TILE_R], dtype=tl.int32)
        known = (columns < R)[None, :]
        at = weight_ptr + (head * (N + V) + places) * R + columns[None, :]
        weight = tl.load(at, mask=(places < N) & known, other=0.0)
        let_in(EARLY)
        mine = q_row + head * (N + P)
        q = tl.load(mine + places, mask=places < N, other=0.0)
        sums = q.to(tl.float32) * weight.to(tl.float32)
        for start in tl.static_range(BLOCK_N, N, BLOCK_N):
            inside = start + places < N
            q = tl.load(mine + start + places, mask=inside, other=0.0)
            weight = tl.load(at + start * R, mask=inside & known, other=0.0)
            sums += q.to(tl.float32) * weight.to(tl.float32)
        query = query_ptr + (row * H + head) * (R + P)
        tl.store(query + columns, tl.sum(sums, axis=0).to(kind), mask=columns < R)


@triton.jit
def _slots(slot_ptr, places, ranks, turns, mask, R: tl.constexpr, P: tl.constexpr, FRESH: tl.constexpr):
    """Latents `[S, R]` and rotary keys `[S, P]` of some slots of a row, where `mask`. FRESH: not from the
    nearest cache, into which their neighbours may have brought an older state of them."""
    source: tl.constexpr = ".cg" if FRESH else ""
    at, there = slot_ptr + places[:, None] * (R + P), mask[:, None]
    latent, turned = there & (ranks < R)[None, :], there & (turns < P)[None, :]
    latent_SR = tl.load(at + ranks[None, :], mask=latent, other=0.0, cache_modifier=source)
    return latent_SR, tl.load(at + R + turns[None, :], mask=turned, other=0.0, cache_modifier=source)


@triton.jit
def _gather(q_HR, q_HP, latent_SR, turned_SP, live, scale, top_H, sum_H, out_HR):
    """What was gathered so far, and some more slots, those that are `live`."""
    scores_HS = tl.dot(q_HR, tl.trans(latent_SR), input_precision="ieee")
    scores_HS = tl.dot(q_HP, tl.trans(turned_SP), scores_HS, input_precision="ieee")
    scores_HS = tl.where(live[None, :], scores_HS * scale, -float("inf"))
    new_H = tl.maximum(top_H, tl.max(scores_HS, axis=1))
    weights_HS = tl.exp2(scores_HS - new_H[:, None])
    faded_H = tl.exp2(top_H - new_H)
    sum_H = sum_H * faded_H + tl.sum(weights_HS, axis=1)
    weights_HS = weights_HS.to(latent_SR.dtype)
    out_HR = tl.dot(weights_HS, latent_SR, out_HR * faded_H[:, None], input_precision="ieee")
    return new_H, sum_H, out_HR


@triton.jit(do_not_specialize=["position_stride", "splits", "slots"])
def attend_kernel(
    query_ptr,
    slots_ptr,
    positions_ptr,
    parts_ptr,
    tops_ptr,
    sums_ptr,
    scale,
    row_stride,
    position_stride,
    splits,
    slots,
    H: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    SPLIT: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
    EARLY: tl.constexpr,
):
    """What a block of heads gathers from one split of a row's slots: the largest score (base 2), the sum of
    weights relative to it, and the weighted sum of latents. A split of one tile is loaded ahead, but for the
    new slot, which the kernel before writes."""
    split, block, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions_ptr + row * position_stride).to(tl.int32)
    length = tl.minimum(position + 1, slots)
    first = split * SPLIT
    heads = block * BLOCK_H + tl.arange(0, BLOCK_H)
    ranks, turns = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    row_ptr = slots_ptr + row.to(tl.int64) * row_stride
    places = first + tl.arange(0, BLOCK_S)
    live = places < length
    if SPLIT == BLOCK_S:
        latent_SR, turned_SP = _slots(row_ptr, places, ranks, turns, live & (places != position), R, P, False)
    let_in(EARLY)
    if first < length:
        kept: tl.constexpr = tl.float32 if EXACT else query_ptr.dtype.element_ty
        there_H1, ranks_1R, turns_1P = (heads < H)[:, None], (ranks < R)[None, :], (turns < P)[None, :]
        query = query_ptr + (row * H + heads[:, None]) * (R + P)
        q_HR = tl.load(query + ranks[None, :], mask=there_H1 & ranks_1R, other=0.0).to(kept)
        q_HP = tl.load(query + R + turns[None, :], mask=there_H1 & turns_1P, other=0.0).to(kept)
        top_H = tl.full([BLOCK_H], -float("inf"), dtype=tl.float32)
        sum_H = tl.zeros([BLOCK_H], dtype=tl.float32)
        out_HR = tl.zeros([BLOCK_H, BLOCK_R], dtype=tl.float32)
        if SPLIT == BLOCK_S:
            own = live & (places == position)
            new_SR, new_SP = _slots(row_ptr, places, ranks, turns, own, R, P, True)
            latent_SR = tl.where(own[:, None], new_SR, latent_SR).to(kept)
            turned_SP = tl.where(own[:, None], new_SP, turned_SP).to(kept)
            top_H, sum_H, out_HR = _gather(
                q_HR, q_HP, latent_SR, turned_SP, live, scale, top_H, sum_H, out_HR
            )
        else:
            for start in range(0, SPLIT, BLOCK_S):
                live = start + places < length
                latent_SR, turned_SP = _slots(row_ptr, start + places, ranks, turns, live, R, P, False)
                top_H, sum_H, out_HR = _gather(
                    q_HR, q_HP, latent_SR.to(kept), turned_SP.to(kept), live, scale, top_H, sum_H, out_HR
                )
        at_H = (row * H + heads) * splits + split
        tl.store(tops_ptr + at_H, top_H, mask=heads < H)
        tl.store(sums_ptr + at_H, sum_H, mask=heads < H)
        tl.store(parts_ptr + at_H[:, None] * R + ranks[None, :], out_HR, mask=there_H1 & ranks_1R)


@triton.jit(do_not_specialize=["position_stride", "splits"])
def leave_kernel(
    parts_ptr,
    tops_ptr,
    sums_ptr,
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
    EARLY: tl.constexpr,
):
    """Splits of one head of a row put together, `[R]`; if PROJECT a tile of its value, `[V]`."""
    tile, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = tl.load(positions_ptr + row * position_stride).to(tl.int32) // SPLIT + 1
    count = tl.minimum(count, splits)
    first, ranks = (row * H + head) * splits, tl.arange(0, BLOCK_R)
    values = tile * TILE_V + tl.arange(0, TILE_V)
    if PROJECT:
        at = (head * (N + V) + N + values)[:, None] * R + ranks[None, :]
        inside = (values < V)[:, None] & (ranks < R)[None, :]
        weight = tl.load(weight_ptr + at, mask=inside, other=0.0)
    let_in(EARLY)
    every = tl.arange(0, SPLITS)
    tops = tl.load(tops_ptr + first + every, mask=every < count, other=-float("inf"))
    sums = tl.load(sums_ptr + first + every, mask=every < count, other=0.0)
    top = tl.max(tops, axis=0)
    total = tl.sum(tl.exp2(tops - top) * sums, axis=0)
    parts_GR = tl.zeros([BLOCK_G, BLOCK_R], dtype=tl.float32)
    for start in range(0, count, BLOCK_G):
        some = start + tl.arange(0, BLOCK_G)
        share = tl.exp2(tl.load(tops_ptr + first + some, mask=some < count, other=-float("inf")) - top)
        mask = (some < count)[:, None] & (ranks < R)[None, :]
        part = parts_ptr + (first + some)[:, None] * R + ranks[None, :]
        parts_GR += share[:, None] * tl.load(part, mask=mask, other=0.0)
    gathered_R = tl.sum(parts_GR, axis=0) / total
    kind = out_ptr.dtype.element_ty
    if PROJECT:
        out_V = tl.sum(weight.to(tl.float32) * gathered_R[None, :], axis=1)
        tl.store(out_ptr + (row * H + head) * V + values, out_V.to(kind), mask=values < V)
    else:
        tl.store(out_ptr + (row * H + head) * R + ranks, gathered_R.to(kind), mask=ranks < R)
