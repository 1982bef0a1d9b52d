"""Attention of one query a row on the CPU in bfloat16, where torch's own is slow.

B rows, H heads, S cache slots, K dimensions of a head.

Keys and values are widened to float32 a part at a time, in memory that is kept: a new buffer of some MB is
mapped and touched page by page at every call, which takes longer than the work. Measured on 2 cores of an
EPYC with AVX-512 for 2 rows of 16 heads of 128 dimensions, torch 2.14: over 96, 352 and 608 slots
`scaled_dot_product_attention` takes 0.4, 1.3 and 2.3 ms, this 0.2, 0.5 and 0.9. Multiplying and summing whole
tensors takes 0.2, 0.6 and 0.9 where the allocator happens to keep their memory; within a step of
Janus-Pro-1B, where it does not, widening alone took 5 ms a layer over 352 slots. In float32 torch's is as
fast as this, or faster.
"""

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

_MOST = 1 << 24  # numbers of the keys: with more, torch's own way
_PART = 1 << 20  # numbers that are widened at a time, 4 MiB; parts of 1 MiB take twice as long


class _Kept(threading.local):
    """Memory of a thread that calls."""

    numbers: Tensor | None = None


_kept = _Kept()


def serves(q_BHTK: Tensor, k_BSHK: Tensor) -> bool:
    """Whether `attend_one` is the faster way: one query, as many key heads as heads, no gradients."""
    return (
        q_BHTK.dtype == torch.bfloat16
        and q_BHTK.device.type == "cpu"
        and q_BHTK.shape[2] == 1
        and q_BHTK.shape[1] == k_BSHK.shape[2]
        and k_BSHK.numel() <= _MOST
        and not q_BHTK.requires_grad
    )


def _room(count: int) -> Tensor:
    """So many float32 numbers, of any value."""
    if _kept.numbers is None or len(_kept.numbers) < count:
        with torch.inference_mode(False):
            _kept.numbers = torch.empty(max(count, _PART))
    return _kept.numbers[:count]


def _parts(x_BSHK: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows and heads with their numbers in float32, `[b * h, S, K]`, which hold until the next are taken."""
    rows, slots, heads, width = x_BSHK.shape
    at_once = max(1, _PART // (slots * width))
    some_rows, some_heads = max(1, at_once // heads), min(at_once, heads)
    for row in range(0, rows, some_rows):
        for head in range(0, heads, some_heads):
            taken = slice(row, row + some_rows), slice(head, head + some_heads)
            part_bhSK = x_BSHK[taken[0], :, taken[1]].transpose(1, 2)
            wide_bhSK = _room(part_bhSK.numel()).view(part_bhSK.shape)
            yield *taken, wide_bhSK.copy_(part_bhSK).flatten(0, 1)


def attend_one(q_BHTK: Tensor, k_BSHK: Tensor, v_BSHK: Tensor, mask_B1TS: Tensor) -> Tensor:
    """`scaled_dot_product_attention` of one query under a mask, `[B, H, 1, K]`; all of it in float32."""
    rows, slots, heads, width = k_BSHK.shape
    q_BHTK = q_BHTK.float().contiguous() * width**-0.5
    scores_BHTS = q_BHTK.new_empty(rows, heads, 1, slots)
    out_BHTK = torch.empty_like(q_BHTK)
    for row, head, k_NSK in _parts(k_BSHK):
        part = scores_BHTS[row, head].flatten(0, 1)  # a view: of one row, or of all heads
        torch.bmm(q_BHTK[row, head].flatten(0, 1), k_NSK.transpose(1, 2), out=part)
    weights_BHTS = scores_BHTS.masked_fill_(~mask_B1TS, -torch.inf).softmax(-1)
    for row, head, v_NSK in _parts(v_BSHK):
        torch.bmm(weights_BHTS[row, head].flatten(0, 1), v_NSK, out=out_BHTK[row, head].flatten(0, 1))
    return out_BHTK.to(v_BSHK.dtype)
