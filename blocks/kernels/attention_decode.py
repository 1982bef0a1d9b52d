"""Triton kernel for multi-head attention in a decode step: one new position per token, over the pooled cache.

Row-invariant: a token's result depends on nothing but its own sequence. Its earlier slots are read in chunks
of fixed size, all computed alike, and added to its own key and value one after the other, in ascending order;
whether one program does this or several share the chunks, the operations and their roundings are the same.

N tokens, H heads, J key/value heads, K dimensions of a head, P positions, S slots of the pool, C columns of
the fused product: (H + 2 J) K.
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

CHUNK = 16
"""Slots whose weighted sum is computed at once. Another size gives other bits."""
UNSPLIT_PROGRAMS = 512
"""Number of programs from which on each reads all of its sequence's slots."""
SPLIT_PROGRAMS = 1280
"""Programs among which the chunks of fewer heads are divided."""
_MAX_SPLITS = 64
_WARP_BYTES = 4096  # keys of a chunk that each warp of a program holds in registers
FOLD = 16
"""Partial results that are loaded at a time."""
LOG2_E = 1.4426950408889634


@triton.jit
def load_rotated(x, k, mask, cos, sin, HALF: tl.constexpr):
    """Dimensions `k` of the heads at the pointers `x`, rotated, in float32."""
    own = tl.load(x + k, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(x + tl.where(k < HALF, k + HALF, k - HALF), mask=mask, other=0.0).to(tl.float32)
    return own * cos + tl.where(k < HALF, -other, other) * sin


@triton.jit
def load_slots(cache, first, stop, slot_stride, k, mask_K, BLOCK: tl.constexpr):
    """Keys or values `[BLOCK, K]` of one sequence's slots from `first` up to `stop`, zeros beyond."""
    slot = first + tl.arange(0, BLOCK)
    mask = (slot < stop)[:, None] & mask_K[None, :]
    return tl.load(cache + slot.to(tl.int64)[:, None] * slot_stride + k[None, :], mask=mask, other=0.0)


@triton.jit
def fold(row_max, total, acc, next_max, next_total, next_sum):
    """Add a chunk's weighted sum to the sum so far. Both are relative to their own maximum."""
    new_max = tl.maximum(row_max, next_max)
    rescale, next_rescale = tl.exp2(row_max - new_max), tl.exp2(next_max - new_max)
    total = total * rescale + next_total * next_rescale
    return new_max, total, acc * rescale + next_sum * next_rescale


@triton.jit
def _fold_stored(sums, maxima, totals, count, k, mask_K, K: tl.constexpr, FOLD: tl.constexpr):
    """Fold `count` partial results in ascending order. They were written by other multiprocessors, so loads
    bypass the L1 cache."""
    row_max = tl.load(maxima, cache_modifier=".cg")
    total = tl.load(totals, cache_modifier=".cg")
    acc = tl.load(sums + k, mask=mask_K, other=0.0, cache_modifier=".cg")
    for first in range(1, count, FOLD):
        for offset in tl.static_range(FOLD):
            item = first + offset
            live = item < count
            next_max = tl.load(maxima + item, mask=live, other=float("-inf"), cache_modifier=".cg")
            next_total = tl.load(totals + item, mask=live, other=0.0, cache_modifier=".cg")
            next_sum = tl.load(sums + item * K + k, mask=mask_K & live, other=0.0, cache_modifier=".cg")
            # With nothing to add, the scales are one and zero: the sums keep their bits.
            row_max, total, acc = fold(row_max, total, acc, next_max, next_total, next_sum)
    return total, acc


@triton.jit(do_not_specialize=["head_step", "slot_step", "items", "splits"])
def _attend(
    qkv,
    cos_table,
    sin_table,
    positions,
    starts,
    keys,
    values,
    out,
    sums,
    maxima,
    totals,
    arrivals,
    head_step,
    slot_step,
    scale,
    items,
    splits,
    H: tl.constexpr,
    J: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    FOLD: tl.constexpr,
    PDL: tl.constexpr,
):
    """One head of one token over its share of the chunks.

    The strides of the cache are `head_step` and `slot_step` times K: whatever they are, one compiled program
    serves. The first program of each head rotates the new key and writes it and the new value to the cache.
    Positions and earlier slots were complete before the preceding kernel started, so they are loaded before
    waiting for it. With several splits, the last program of a head to finish combines its partial results.
    """
    G: tl.constexpr = H // J
    token_head, split = tl.program_id(0), tl.program_id(1)
    token, head = (token_head // H).to(tl.int64), token_head % H
    kv_head = head // G
    position = tl.load(positions + token).to(tl.int32)
    chunks = tl.cdiv(position, CHUNK)
    per_split = tl.maximum(tl.cdiv(chunks, splits), 1)
    first_chunk = split * per_split
    stop_chunk = tl.minimum(first_chunk + per_split, chunks)
    stop = tl.minimum(stop_chunk * CHUNK, position)
    dtype = keys.dtype.element_ty
    k = tl.arange(0, K_PADDED)
    mask_K = k < K
    cos = tl.load(cos_table + position * K + k, mask=mask_K, other=0.0)
    sin = tl.load(sin_table + position * K + k, mask=mask_K, other=0.0)
    slot_stride = slot_step.to(tl.int64) * K
    sequence = (kv_head * head_step.to(tl.int64) + tl.load(starts + token).to(tl.int64) * slot_step) * K
    keys += sequence
    values += sequence
    key = load_slots(keys, first_chunk * CHUNK, stop, slot_stride, k, mask_K, CHUNK)
    value = load_slots(values, first_chunk * CHUNK, stop, slot_stride, k, mask_K, CHUNK)
    wait_then_trigger(PDL)
    if (split > 0) & (first_chunk >= chunks):
        return
    qkv += token * ((H + 2 * J) * K)
    q = load_rotated(qkv + head * K, k, mask_K, cos, sin, K // 2)
    q = q.to(dtype).to(tl.float32) * scale

    mask_new = mask_K & (split == 0)
    new_key = load_rotated(qkv + (H + kv_head) * K, k, mask_new, cos, sin, K // 2).to(dtype)
    new_value = tl.load(qkv + (H + J + kv_head) * K + k, mask=mask_new, other=0.0)
    new_slot = position * slot_stride + k
    tl.store(keys + new_slot, new_key, mask=mask_new)
    tl.store(values + new_slot, new_value, mask=mask_new)
    row_max = tl.sum(q * new_key.to(tl.float32), axis=0)
    total = tl.full([], 1.0, tl.float32)
    acc = new_value.to(tl.float32)
    first_item = token_head.to(tl.int64) * items
    if (splits > 1) & (split == 0):
        tl.store(maxima + first_item, row_max)
        tl.store(totals + first_item, total)
        tl.store(sums + first_item * K + k, acc, mask=mask_K)

    for chunk in range(first_chunk, stop_chunk):
        next_slot = (chunk + 1) * CHUNK
        scores = tl.sum(q[None, :] * key.to(tl.float32), axis=1)
        scores = tl.where(chunk * CHUNK + tl.arange(0, CHUNK) < position, scores, float("-inf"))
        key = load_slots(keys, next_slot, stop, slot_stride, k, mask_K, CHUNK)
        chunk_max = tl.max(scores, axis=0)
        weights = tl.exp2(scores - chunk_max)
        chunk_total = tl.sum(weights, axis=0)
        chunk_sum = tl.sum(weights[:, None] * value.to(tl.float32), axis=0)
        value = load_slots(values, next_slot, stop, slot_stride, k, mask_K, CHUNK)
        if splits > 1:
            item = first_item + 1 + chunk
            tl.store(maxima + item, chunk_max)
            tl.store(totals + item, chunk_total)
            tl.store(sums + item * K + k, chunk_sum, mask=mask_K)
        else:
            row_max, total, acc = fold(row_max, total, acc, chunk_max, chunk_total, chunk_sum)

    out += token * (H * K)
    if splits == 1:
        tl.store(out + head * K + k, (acc / total).to(out.dtype.element_ty), mask=mask_K)
        return
    arrival = arrivals + token_head
    tl.debug_barrier()  # all threads have stored before one of them counts the arrival
    if tl.atomic_add(arrival, 1, sem="acq_rel") == tl.maximum(tl.cdiv(chunks, per_split), 1) - 1:
        tl.debug_barrier()
        tl.store(arrival, 0)
        total, acc = _fold_stored(
            sums + first_item * K,
            maxima + first_item,
            totals + first_item,
            chunks + 1,
            k,
            mask_K,
            K,
            FOLD,
        )
        tl.store(out + head * K + k, (acc / total).to(out.dtype.element_ty), mask=mask_K)


def plan_splits(programs: int, span: int) -> int:
    """The number of programs among which the chunks of each head are divided.

    Depends only on the longest possible sequence, so one captured graph serves any number of filled slots.
    """
    if programs >= UNSPLIT_PROGRAMS:
        return 1
    return min(_MAX_SPLITS, triton.cdiv(SPLIT_PROGRAMS, programs), triton.cdiv(span, CHUNK))


def slot_steps(keys_JSK: Tensor, values_JSK: Tensor) -> tuple[int, int]:
    """The strides of heads and of slots, the same for keys and values, as multiples of K."""
    head_stride, slot_stride, dim_stride = keys_JSK.stride()
    dim = keys_JSK.shape[2]
    assert values_JSK.stride() == keys_JSK.stride()
    assert dim_stride == 1
    assert head_stride % dim == slot_stride % dim == 0
    return head_stride // dim, slot_stride // dim


def part_warps(keys_JSK: Tensor) -> int:
    """Warps of a program, the same wherever a chunk is computed: its sums depend on them."""
    padded = triton.next_power_of_2(keys_JSK.shape[2])
    return max(1, CHUNK * padded * keys_JSK.itemsize // _WARP_BYTES)


def partials(out: Tensor, items: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 buffers for the weighted sums, maxima and totals of all chunks of all heads."""
    sums = torch.empty(items * dim, dtype=torch.float32, device=out.device)
    maxima, totals = torch.empty(2, items, dtype=torch.float32, device=out.device)
    return sums, maxima, totals


def attend(
    qkv_NC: Tensor,
    rotary: tuple[Tensor, Tensor],
    positions_N: Tensor,
    starts_N: Tensor,
    keys_JSK: Tensor,
    values_JSK: Tensor,
    heads: int,
    arrivals: Tensor,
    span: int,
) -> Tensor:
    """Attention of one new position per token, `[N, H K]`.

    `qkv_NC` holds each token's queries, keys and values of all heads, not yet rotated; `rotary` holds the
    cosines and sines of all positions, `[P, K]`. A token's sequence is in the slots of the pool from its
    start on: key and value are written to slot `start + position`, and the slots from `start` up to it are
    read. No position may reach `span`. `arrivals`, int32 and at least N H zeros, counts the finished programs
    of each head; it is zero again afterwards.
    """
    tokens, (kv_heads, _, dim) = len(qkv_NC), keys_JSK.shape
    assert arrivals.numel() >= tokens * heads
    splits = plan_splits(tokens * heads, span)
    items = 1 + triton.cdiv(span, CHUNK)
    out = qkv_NC.new_empty(tokens, heads * dim)
    _attend[tokens * heads, splits](
        qkv_NC.contiguous(),
        *rotary,
        positions_N,
        starts_N,
        keys_JSK,
        values_JSK,
        out,
        *partials(out, tokens * heads * items if splits > 1 else 1, dim),
        arrivals,
        *slot_steps(keys_JSK, values_JSK),
        dim**-0.5 * LOG2_E,
        items,
        splits,
        H=heads,
        J=kv_heads,
        K=dim,
        K_PADDED=triton.next_power_of_2(dim),
        CHUNK=CHUNK,
        FOLD=FOLD,
        num_warps=part_warps(keys_JSK),
        enable_fp_fusion=False,  # so that a sum in registers rounds like one of stored parts
        **pdl_options(out),
    )
    return out
