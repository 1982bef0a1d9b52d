"""Triton kernel for multi-head attention in a decode step: one new position per row, over the cache.

R rows, H heads, J key/value heads, G = H / J heads that share one, K dimensions of a head, S cache slots.
All that changes between steps is read from tensors on the device, so one captured graph serves every step.
The definitions are `rotate` in model/layers.py and `attend` in batch_invariant.py.
"""

# Triton kernels are not what their Python types say:
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pdl import pdl_options, wait_then_trigger

BLOCK_S = 16
"""Slots that a program reads at a time, for one head per key/value head."""
ENOUGH_PROGRAMS = 3072
"""Programs, of one warp each, that keep a large GPU busy; the cache is split to get this many."""
_MIN_CHUNK = 32
_MAX_SPLITS = 32


@triton.jit
def _load_rotated(x, k, mask, cos, sin, HALF: tl.constexpr):
    """Dimensions `k` of the heads at the pointers `x`, rotated, in float32."""
    own = tl.load(x + k, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(x + tl.where(k < HALF, k + HALF, k - HALF), mask=mask, other=0.0).to(tl.float32)
    return own * cos + tl.where(k < HALF, -other, other) * sin


@triton.jit
def _load_slots(keys, values, head_offset, first, stop, slot_stride, k, mask_K, BLOCK: tl.constexpr):
    """Keys and values `[S, K]` of the slots from `first` up to `stop`."""
    slot = first + tl.arange(0, BLOCK)
    offset = head_offset + slot.to(tl.int64)[:, None] * slot_stride + k[None, :]
    mask = (slot < stop)[:, None] & mask_K[None, :]
    return tl.load(keys + offset, mask=mask, other=0.0), tl.load(values + offset, mask=mask, other=0.0)


@triton.jit
def _attend(
    qkv,
    cos_table,
    sin_table,
    positions,
    keys,
    values,
    out,
    partial_sums,
    row_maxima,
    totals,
    arrivals,
    row_stride,
    slot_stride,
    head_stride,
    scale,
    CHUNK,
    J: tl.constexpr,
    G: tl.constexpr,
    G_PADDED: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITS_PADDED: tl.constexpr,
    PDL: tl.constexpr,
):
    """One key/value head of one row over one chunk of its slots.

    The program whose chunk holds the row's own position rotates the new key and writes it and the new value
    to the cache. Positions and earlier slots were complete before the preceding kernel started, so they are
    loaded before waiting for it. The last program of a head to finish combines the chunks.
    """
    pair = tl.program_id(0)
    row, head, split = (pair // J).to(tl.int64), pair % J, tl.program_id(1)
    position = tl.load(positions + row).to(tl.int32)
    start = split * CHUNK
    stop = tl.minimum(start + CHUNK, position)
    dtype = keys.dtype.element_ty
    k = tl.arange(0, K_PADDED)
    mask_K = k < K
    g = tl.arange(0, G_PADDED)
    mask_GK = (g[:, None] < G) & mask_K[None, :]
    cos = tl.load(cos_table + position * K + k, mask=mask_K, other=0.0)
    sin = tl.load(sin_table + position * K + k, mask=mask_K, other=0.0)
    head_offset = row * row_stride + head * head_stride
    key, value = _load_slots(keys, values, head_offset, start, stop, slot_stride, k, mask_K, BLOCK)
    wait_then_trigger(PDL)
    if start > position:
        return
    qkv_row = qkv + row * ((G + 2) * J * K)
    queries = qkv_row + (head * G + g)[:, None] * K
    q = _load_rotated(queries, k[None, :], mask_GK, cos[None, :], sin[None, :], K // 2)
    q = q.to(dtype).to(tl.float32) * scale

    holds_position = position < start + CHUNK
    mask_new = mask_K & holds_position
    new_key = _load_rotated(qkv_row + (G * J + head) * K, k, mask_new, cos, sin, K // 2).to(dtype)
    new_value = tl.load(qkv_row + ((G + 1) * J + head) * K + k, mask=mask_new, other=0.0)
    new_slot = head_offset + position.to(tl.int64) * slot_stride + k
    tl.store(keys + new_slot, new_key, mask=mask_new)
    tl.store(values + new_slot, new_value, mask=mask_new)
    score = tl.sum(q * new_key.to(tl.float32)[None, :], axis=1)
    row_max = tl.where(holds_position, score, float("-inf"))
    total = tl.where(holds_position, 1.0, 0.0) + tl.zeros([G_PADDED], tl.float32)
    acc = tl.zeros([G_PADDED, K_PADDED], tl.float32) + new_value.to(tl.float32)[None, :]

    for first in range(start, stop, BLOCK):
        next_key, next_value = _load_slots(
            keys, values, head_offset, first + BLOCK, stop, slot_stride, k, mask_K, BLOCK
        )
        scores = tl.sum(q[:, None, :] * key.to(tl.float32)[None, :, :], axis=2)
        scores = tl.where((first + tl.arange(0, BLOCK) < stop)[None, :], scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, axis=1))
        rescale = tl.exp(row_max - new_max)
        weights = tl.exp(scores - new_max[:, None])
        total = total * rescale + tl.sum(weights, axis=1)
        acc = acc * rescale[:, None] + tl.sum(weights[:, :, None] * value.to(tl.float32)[None, :, :], axis=1)
        row_max = new_max
        key, value = next_key, next_value

    query_heads = row * (J * G) + head * G + g
    if SPLITS == 1:
        result = (acc / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + query_heads[:, None] * K + k[None, :], result, mask=mask_GK)
        return
    tl.store(partial_sums + (query_heads * SPLITS + split)[:, None] * K + k[None, :], acc, mask=mask_GK)
    tl.store(row_maxima + query_heads * SPLITS + split, row_max, mask=g < G)
    tl.store(totals + query_heads * SPLITS + split, total, mask=g < G)
    live = position // CHUNK + 1
    tl.debug_barrier()  # all threads have stored before one of them counts the arrival
    if tl.atomic_add(arrivals + pair, 1, sem="acq_rel") == live - 1:
        tl.debug_barrier()
        tl.store(arrivals + pair, 0)
        for group in tl.static_range(G):
            query_head = row * (J * G) + head * G + group
            _combine(
                partial_sums, row_maxima, totals, out, query_head, live, k, mask_K, K, SPLITS, SPLITS_PADDED
            )


@triton.jit
def _combine(
    partial_sums,
    row_maxima,
    totals,
    out,
    query_head,
    live,
    k,
    mask_K,
    K: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITS_PADDED: tl.constexpr,
):
    """The output of one head of one row from its first `live` chunks. They were written by other
    multiprocessors, so loads bypass the L1 cache."""
    split = tl.arange(0, SPLITS_PADDED)
    is_live, offset = split < live, query_head * SPLITS + split
    row_max = tl.load(row_maxima + offset, mask=is_live, other=float("-inf"), cache_modifier=".cg")
    total = tl.load(totals + offset, mask=is_live, other=0.0, cache_modifier=".cg")
    mask = is_live[:, None] & mask_K[None, :]
    sums = tl.load(
        partial_sums + offset[:, None] * K + k[None, :], mask=mask, other=0.0, cache_modifier=".cg"
    )
    weight = tl.exp(row_max - tl.max(row_max, axis=0))
    result = tl.sum(sums * weight[:, None], axis=0) / tl.sum(weight * total, axis=0)
    tl.store(out + query_head * K + k, result.to(out.dtype.element_ty), mask=mask_K)


def plan_splits(programs: int, slots: int) -> tuple[int, int]:
    """Slots per chunk and number of chunks, for this many programs per chunk.

    Depends only on the allocated slots, so one captured graph serves any number of filled ones.
    """
    if programs >= ENOUGH_PROGRAMS:
        return slots, 1
    splits = min(_MAX_SPLITS, triton.cdiv(ENOUGH_PROGRAMS, programs))
    chunk = max(_MIN_CHUNK, triton.cdiv(triton.cdiv(slots, splits), BLOCK_S) * BLOCK_S)
    return chunk, triton.cdiv(slots, chunk)


def _partials(out: Tensor, heads: int, splits: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Buffers for the weighted sums, row maxima and totals of all splits; placeholders with one split."""
    if splits == 1:
        return out, out[0], out[0]
    count = len(out) * heads * splits
    partial_sums = torch.empty(count * dim, dtype=torch.float32, device=out.device)
    row_maxima, totals = torch.empty(2, count, dtype=torch.float32, device=out.device)
    return partial_sums, row_maxima, totals


def attend(
    qkv_RC: Tensor,
    rotary: tuple[Tensor, Tensor],
    positions_R: Tensor,
    keys_RSJK: Tensor,
    values_RSJK: Tensor,
    heads: int,
    arrivals: Tensor,
) -> Tensor:
    """Attention of one new position per row, `[R, H K]`.

    `qkv_RC` holds each row's queries, keys and values of all heads, not yet rotated; `rotary` holds the
    cosines and sines of all slots, `[S, K]`. Key and value are written to the slot of the row's position,
    and the slots up to it are read. `arrivals`, int32 and at least R J zeros, counts the finished programs
    of each head; it is zero again afterwards.
    """
    rows, slots, kv_heads, dim = keys_RSJK.shape
    assert keys_RSJK.stride() == values_RSJK.stride()
    assert keys_RSJK.stride(3) == 1
    assert arrivals.numel() >= rows * kv_heads
    group = heads // kv_heads
    group_padded = triton.next_power_of_2(group)
    chunk, splits = plan_splits(rows * kv_heads, slots)
    out = qkv_RC.new_empty(rows, heads * dim)
    _attend[rows * kv_heads, splits](
        qkv_RC.contiguous(),
        *rotary,
        positions_R,
        keys_RSJK,
        values_RSJK,
        out,
        *_partials(out, heads, splits, dim),
        arrivals,
        *keys_RSJK.stride()[:3],
        dim**-0.5,
        chunk,
        J=kv_heads,
        G=group,
        G_PADDED=group_padded,
        K=dim,
        K_PADDED=triton.next_power_of_2(dim),
        BLOCK=max(4, BLOCK_S // group_padded),
        SPLITS=splits,
        SPLITS_PADDED=triton.next_power_of_2(splits),
        num_warps=1,
        **pdl_options(out),
    )
    return out
