"""Triton kernels for multi-head attention of windows: several new positions of each sequence, of which all
but the first are guesses (see drafts.py).

A token's result has the bits that `attention_decode.attend` gives it alone: its own key and value, then the
chunks of earlier slots in ascending order, each of the same size and computed alike. The keys and values of a
window are written first; a program loads a chunk once for several tokens of a window, and stores the parts
of each, which another kernel adds.

N tokens, W tokens of a window, H heads, J key/value heads, K dimensions of a head, P positions, S slots of
the pool, C columns of the fused product: (H + 2 J) K.
"""

# Triton kernels are not what their Python types say:
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_decode import CHUNK, FOLD, LOG2_E, fold, load_slots, part_warps, partials, slot_steps
from .attention_prefill import rotate_and_write
from .pdl import pdl_options, wait_then_trigger

TOKENS = 4
"""Tokens of a window for which a program loads a chunk once."""
PROGRAMS = 4096
"""Programs among which the chunks of all windows are divided."""
_MAX_PARTS = 1 << 27
"""Numbers of parts that are stored at a time; more windows are computed one group after the other."""


@triton.jit
def _query(queries, positions, token, end, head, scale, k, mask_K, H: tl.constexpr, K: tl.constexpr):
    """A token's query and position; zeros from the token `end` on."""
    inside = token < end
    q = tl.load(queries + (token * H + head) * K + k, mask=mask_K & inside, other=0.0)
    return q.to(tl.float32) * scale, tl.load(positions + token, mask=inside, other=0).to(tl.int32)


@triton.jit
def _part(q, key, value, slots, begin, position):
    """The maximum score, the total and the weighted sum of a chunk, as in `attention_decode`; of anything if
    all its slots are later ones."""
    live = (slots < position) | (begin >= position)
    scores = tl.where(live, tl.sum(q[None, :] * key, axis=1), float("-inf"))
    chunk_max = tl.max(scores, axis=0)
    weights = tl.exp2(scores - chunk_max)
    return chunk_max, tl.sum(weights, axis=0), tl.sum(weights[:, None] * value, axis=0)


@triton.jit
def _own_part(q, key, value, slots, begin, position):
    """`_part` where slots from `position` on are later tokens of the window and count as empty."""
    own = (slots < position)[:, None]
    return _part(q, tl.where(own, key, 0.0), tl.where(own, value, 0.0), slots, begin, position)


@triton.jit
def _keep_part(part_max, total, weighted, item, live, sums, maxima, totals, k, mask_K, K: tl.constexpr):
    tl.store(maxima + item, part_max, mask=live)
    tl.store(totals + item, total, mask=live)
    tl.store(sums + item * K + k, weighted, mask=mask_K & live)


@triton.jit(do_not_specialize=["head_step", "slot_step", "items", "splits", "width"])
def _attend_to_chunks(
    queries, positions, starts, keys, values, sums, maxima, totals,
    head_step, slot_step, scale, items, splits, width,
    H: tl.constexpr, J: tl.constexpr, K: tl.constexpr, K_PADDED: tl.constexpr, CHUNK: tl.constexpr,
    TOKENS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One head of TOKENS = 4 tokens of one window over their share of the chunks. Tokens that belong to
    another sequence than the window's first have position 0 and so no earlier slots."""
    groups = tl.cdiv(width, TOKENS)
    program, split = tl.program_id(0), tl.program_id(1)
    head, group = program % H, program // H
    window = (group // groups).to(tl.int64) * width
    first, end = window + group % groups * TOKENS, window + width
    k = tl.arange(0, K_PADDED)
    mask_K = k < K
    wait_then_trigger(PDL)
    q0, position0 = _query(queries, positions, first, end, head, scale, k, mask_K, H, K)
    q1, position1 = _query(queries, positions, first + 1, end, head, scale, k, mask_K, H, K)
    q2, position2 = _query(queries, positions, first + 2, end, head, scale, k, mask_K, H, K)
    q3, position3 = _query(queries, positions, first + 3, end, head, scale, k, mask_K, H, K)
    last = tl.maximum(tl.maximum(position0, position1), tl.maximum(position2, position3))
    chunks = tl.cdiv(last, CHUNK)
    per_split = tl.maximum(tl.cdiv(chunks, splits), 1)
    first_chunk = split * per_split
    slot_stride = slot_step.to(tl.int64) * K
    kv_head = head // (H // J)
    sequence = (kv_head * head_step.to(tl.int64) + tl.load(starts + window).to(tl.int64) * slot_step) * K
    keys += sequence
    values += sequence
    item = (first * H + head) * items
    for chunk in range(first_chunk, tl.minimum(first_chunk + per_split, chunks)):
        begin = chunk * CHUNK
        slots = begin + tl.arange(0, CHUNK)
        key = load_slots(keys, begin, last, slot_stride, k, mask_K, CHUNK).to(tl.float32)
        value = load_slots(values, begin, last, slot_stride, k, mask_K, CHUNK).to(tl.float32)
        if begin + CHUNK <= position0:
            max0, total0, sum0 = _part(q0, key, value, slots, begin, position0)
            max1, total1, sum1 = _part(q1, key, value, slots, begin, position1)
            max2, total2, sum2 = _part(q2, key, value, slots, begin, position2)
            max3, total3, sum3 = _part(q3, key, value, slots, begin, position3)
        else:
            max0, total0, sum0 = _own_part(q0, key, value, slots, begin, position0)
            max1, total1, sum1 = _own_part(q1, key, value, slots, begin, position1)
            max2, total2, sum2 = _own_part(q2, key, value, slots, begin, position2)
            max3, total3, sum3 = _own_part(q3, key, value, slots, begin, position3)
        at, step = item + chunk, H * items
        _keep_part(max0, total0, sum0, at, begin < position0, sums, maxima, totals, k, mask_K, K)
        _keep_part(max1, total1, sum1, at + step, begin < position1, sums, maxima, totals, k, mask_K, K)
        _keep_part(max2, total2, sum2, at + 2 * step, begin < position2, sums, maxima, totals, k, mask_K, K)
        _keep_part(max3, total3, sum3, at + 3 * step, begin < position3, sums, maxima, totals, k, mask_K, K)


@triton.jit(do_not_specialize=["head_step", "slot_step", "items"])
def _add_parts(
    queries, positions, starts, keys, values, sums, maxima, totals, out,
    head_step, slot_step, scale, items,
    H: tl.constexpr, J: tl.constexpr, K: tl.constexpr, K_PADDED: tl.constexpr, CHUNK: tl.constexpr,
    FOLD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One head of one token: its own key and value, then the parts of the chunks in ascending order."""
    token_head = tl.program_id(0).to(tl.int64)
    token, head = token_head // H, token_head % H
    position = tl.load(positions + token)
    slot = tl.load(starts + token).to(tl.int64) + position
    chunks = tl.cdiv(position.to(tl.int32), CHUNK)
    own = (head // (H // J) * head_step.to(tl.int64) + slot * slot_step) * K
    k = tl.arange(0, K_PADDED)
    mask_K = k < K
    wait_then_trigger(PDL)
    q = tl.load(queries + token_head * K + k, mask=mask_K, other=0.0).to(tl.float32) * scale
    new_key = tl.load(keys + own + k, mask=mask_K, other=0.0)
    row_max = tl.sum(q * new_key.to(tl.float32), axis=0)
    total = tl.full([], 1.0, tl.float32)
    acc = tl.load(values + own + k, mask=mask_K, other=0.0).to(tl.float32)
    item = token_head * items
    for first in range(0, chunks, FOLD):
        for offset in tl.static_range(FOLD):
            live = first + offset < chunks
            next_max = tl.load(maxima + item + first + offset, mask=live, other=float("-inf"))
            next_total = tl.load(totals + item + first + offset, mask=live, other=0.0)
            next_sum = tl.load(sums + (item + first + offset) * K + k, mask=mask_K & live, other=0.0)
            row_max, total, acc = fold(row_max, total, acc, next_max, next_total, next_sum)
    tl.store(out + token_head * K + k, (acc / total).to(out.dtype.element_ty), mask=mask_K)


def attend(
    qkv_NC: Tensor,
    rotary: tuple[Tensor, Tensor],
    positions_N: Tensor,
    starts_N: Tensor,
    keys_JSK: Tensor,
    values_JSK: Tensor,
    heads: int,
    width: int,
    span: int,
) -> Tensor:
    """Attention of windows of `width` tokens each, `[N, H K]`.

    The arguments are those of `attention_decode.attend`. Each W tokens are a window: consecutive positions of
    one sequence, up to tokens at position 0 of another one, whose results are not used.
    """
    queries = rotate_and_write(qkv_NC, rotary, positions_N, starts_N, keys_JSK, values_JSK, heads)
    tokens, dim, items = len(qkv_NC), keys_JSK.shape[2], triton.cdiv(span, CHUNK)
    group = max(1, _MAX_PARTS // (width * heads * items * dim)) * width
    out = torch.empty_like(queries)
    for first in range(0, tokens, group):
        part = slice(first, first + group)
        _attend_part(
            (queries[part], positions_N[part], starts_N[part], keys_JSK, values_JSK),
            out[part], heads, width, items,
        )  # fmt: skip
    return out


def _attend_part(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], out: Tensor, heads: int, width: int, items: int
) -> None:
    keys, values = inputs[3:]
    tokens, (kv_heads, _, dim) = len(out), keys.shape
    programs = tokens // width * triton.cdiv(width, TOKENS) * heads
    splits = max(1, min(items, triton.cdiv(PROGRAMS, programs)))
    parts = partials(out, tokens * heads * items, dim)
    numbers = (*slot_steps(keys, values), dim**-0.5 * LOG2_E, items)
    sizes = {"H": heads, "J": kv_heads, "K": dim, "K_PADDED": triton.next_power_of_2(dim), "CHUNK": CHUNK}
    options = {"num_warps": part_warps(keys), "enable_fp_fusion": False, **pdl_options(out)}
    _attend_to_chunks[programs, splits](
        *inputs, *parts, *numbers, splits, width, **sizes, TOKENS=TOKENS, **options
    )
    _add_parts[(tokens * heads,)](*inputs, *parts, out, *numbers, **sizes, FOLD=FOLD, **options)
