"""Triton kernels of one decoding step: attention of one new position of every row.

R rows, H heads, J key/value heads, G = H / J heads that share one, K dimensions of a head, S cache slots.
Everything that changes from step to step is read from tensors on the device, so that a captured graph
serves every step. rope.py and invariant.attend stay the definition.
"""

# What Triton's compiler reads is not what a checker of types takes it for.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pdl import pdl_options, wait_then_trigger

_BLOCK = 16
"""Slots that a program reads at a time."""
_ENOUGH = 3072
"""Programs, of a warp each, that keep a large GPU busy: rows are split into no more."""
_LEAST_CHUNK = 32
_MOST_SPLITS = 32


@triton.jit
def _rotated(x, k, inside, cos, sin, HALF: tl.constexpr):
    """Dimensions `k` of the heads that the pointers `x` begin, turned by their angles, in float32."""
    own = tl.load(x + k, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(x + tl.where(k < HALF, k + HALF, k - HALF), mask=inside, other=0.0).to(tl.float32)
    return own * cos + tl.where(k < HALF, -other, other) * sin


@triton.jit
def _slots(keys, values, cached, first, stop, slot_stride, k, inside, BLOCK: tl.constexpr):
    """Keys and values `[S, K]` of some slots, up to `stop`."""
    slot = first + tl.arange(0, BLOCK)
    at = cached + slot.to(tl.int64)[:, None] * slot_stride + k[None, :]
    known = (slot < stop)[:, None] & inside[None, :]
    return tl.load(keys + at, mask=known, other=0.0), tl.load(values + at, mask=known, other=0.0)


@triton.jit
def _attend(
    qkv,
    cos_table,
    sin_table,
    positions,
    keys,
    values,
    out,
    parts,
    peaks,
    sums,
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
    """One key/value head of one row over one chunk of its slots; the chunk of the row's own position turns
    the new key, and writes it and the new value into the cache. What is in the cache already, and the
    position, are older than the kernel before this one: they are read while waiting for it. The program of a
    head that ends last puts its chunks together."""
    pair = tl.program_id(0)
    row, head, split = (pair // J).to(tl.int64), pair % J, tl.program_id(1)
    place = tl.load(positions + row).to(tl.int32)
    start = split * CHUNK
    stop = tl.minimum(start + CHUNK, place)
    kind = keys.dtype.element_ty
    k = tl.arange(0, K_PADDED)
    inside = k < K
    g = tl.arange(0, G_PADDED)
    inside_gk = (g[:, None] < G) & inside[None, :]
    cos = tl.load(cos_table + place * K + k, mask=inside, other=0.0)
    sin = tl.load(sin_table + place * K + k, mask=inside, other=0.0)
    cached = row * row_stride + head * head_stride
    key, value = _slots(keys, values, cached, start, stop, slot_stride, k, inside, BLOCK)
    wait_then_trigger(PDL)
    if start > place:
        return
    mine = qkv + row * ((G + 2) * J * K)
    heads = mine + (head * G + g)[:, None] * K
    q = _rotated(heads, k[None, :], inside_gk, cos[None, :], sin[None, :], K // 2)
    q = q.to(kind).to(tl.float32) * scale

    owner = place < start + CHUNK
    new_key = _rotated(mine + (G * J + head) * K, k, inside & owner, cos, sin, K // 2).to(kind)
    new_value = tl.load(mine + ((G + 1) * J + head) * K + k, mask=inside & owner, other=0.0)
    here = cached + place.to(tl.int64) * slot_stride + k
    tl.store(keys + here, new_key, mask=inside & owner)
    tl.store(values + here, new_value, mask=inside & owner)
    score = tl.sum(q * new_key.to(tl.float32)[None, :], axis=1)
    peak = tl.where(owner, score, float("-inf"))
    total = tl.where(owner, 1.0, 0.0) + tl.zeros([G_PADDED], tl.float32)
    acc = tl.zeros([G_PADDED, K_PADDED], tl.float32) + new_value.to(tl.float32)[None, :]

    for first in range(start, stop, BLOCK):
        following = _slots(keys, values, cached, first + BLOCK, stop, slot_stride, k, inside, BLOCK)
        scores = tl.sum(q[:, None, :] * key.to(tl.float32)[None, :, :], axis=2)
        scores = tl.where((first + tl.arange(0, BLOCK) < stop)[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        fade = tl.exp(peak - higher)
        weights = tl.exp(scores - higher[:, None])
        total = total * fade + tl.sum(weights, axis=1)
        acc = acc * fade[:, None] + tl.sum(weights[:, :, None] * value.to(tl.float32)[None, :, :], axis=1)
        peak = higher
        key, value = following

    numbers = row * (J * G) + head * G + g
    if SPLITS == 1:
        result = (acc / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + numbers[:, None] * K + k[None, :], result, mask=inside_gk)
        return
    tl.store(parts + (numbers * SPLITS + split)[:, None] * K + k[None, :], acc, mask=inside_gk)
    tl.store(peaks + numbers * SPLITS + split, peak, mask=g < G)
    tl.store(sums + numbers * SPLITS + split, total, mask=g < G)
    live = place // CHUNK + 1
    tl.debug_barrier()  # the stores of all threads come before the arrival of one
    if tl.atomic_add(arrivals + pair, 1, sem="acq_rel") == live - 1:
        tl.debug_barrier()
        tl.store(arrivals + pair, 0)
        for group in tl.static_range(G):
            number = row * (J * G) + head * G + group
            _combine(parts, peaks, sums, out, number, live, k, inside, K, SPLITS, SPLITS_PADDED)


@triton.jit
def _combine(
    parts,
    peaks,
    sums,
    out,
    number,
    live,
    k,
    inside,
    K: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITS_PADDED: tl.constexpr,
):
    """One head of one row from its chunks, of which the first `live` hold something. (They come from other
    processors: not from this one's own cache.)"""
    split = tl.arange(0, SPLITS_PADDED)
    there, at = split < live, number * SPLITS + split
    peak = tl.load(peaks + at, mask=there, other=float("-inf"), cache_modifier=".cg")
    total = tl.load(sums + at, mask=there, other=0.0, cache_modifier=".cg")
    known = there[:, None] & inside[None, :]
    part = tl.load(parts + at[:, None] * K + k[None, :], mask=known, other=0.0, cache_modifier=".cg")
    weight = tl.exp(peak - tl.max(peak, axis=0))
    result = tl.sum(part * weight[:, None], axis=0) / tl.sum(weight * total, axis=0)
    tl.store(out + number * K + k, result.to(out.dtype.element_ty), mask=inside)


def plan_splits(programs: int, slots: int) -> tuple[int, int]:
    """Slots of a chunk and how many chunks: by what is allocated alone, so that a graph serves every fill."""
    if programs >= _ENOUGH:
        return slots, 1
    wanted = min(_MOST_SPLITS, triton.cdiv(_ENOUGH, programs))
    chunk = max(_LEAST_CHUNK, triton.cdiv(triton.cdiv(slots, wanted), _BLOCK) * _BLOCK)
    return chunk, triton.cdiv(slots, chunk)


def attend(
    qkv_RC: Tensor,
    rotary: tuple[Tensor, Tensor],
    positions_R: Tensor,
    keys_RSJK: Tensor,
    values_RSJK: Tensor,
    heads: int,
    arrivals: Tensor,
) -> Tensor:
    """Attention of one new position of every row, `[R, H K]`.

    `qkv` holds a row's queries, keys and values of all heads, not yet turned; `rotary` are the cosines and
    sines of all slots, `[S, K]`. Key and value are written to the row's slot, and slots up to it are read.
    `arrivals`, int32, at least R J zeros, are zeros again afterwards.
    """
    rows, slots, kv_heads, dim = keys_RSJK.shape
    assert keys_RSJK.stride() == values_RSJK.stride()
    assert keys_RSJK.stride(3) == 1
    assert arrivals.numel() >= rows * kv_heads
    group = heads // kv_heads
    chunk, splits = plan_splits(rows * kv_heads, slots)
    qkv_RC = qkv_RC.contiguous()
    out = qkv_RC.new_empty(rows, heads * dim)
    parts, peaks = out, out
    if splits > 1:
        parts = torch.empty(rows * heads * splits * dim, dtype=torch.float32, device=out.device)
        peaks = torch.empty(2, rows * heads * splits, dtype=torch.float32, device=out.device)
    group_padded = triton.next_power_of_2(group)
    _attend[rows * kv_heads, splits](
        qkv_RC,
        *rotary,
        positions_R,
        keys_RSJK,
        values_RSJK,
        out,
        parts,
        peaks[0],
        peaks[-1],
        arrivals,
        keys_RSJK.stride(0),
        keys_RSJK.stride(1),
        keys_RSJK.stride(2),
        dim**-0.5,
        chunk,
        J=kv_heads,
        G=group,
        G_PADDED=group_padded,
        K=dim,
        K_PADDED=triton.next_power_of_2(dim),
        BLOCK=max(4, _BLOCK // group_padded),
        SPLITS=splits,
        SPLITS_PADDED=triton.next_power_of_2(splits),
        num_warps=1,
        **pdl_options(out),
    )
    return out
