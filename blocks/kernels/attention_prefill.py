"""Triton kernels for multi-head attention of prompts over the pooled cache: causal flash attention (Dao 2023,
"FlashAttention-2").

Row-invariant: all slots of a token's sequence are read in ascending blocks of fixed size, from its first
slot on. Slots after its own position have no weight and change no bit, so its result depends on nothing but
its sequence up to itself, however the prompt is cut into chunks and whatever stands beside it.

N tokens, H heads, J key/value heads, K dimensions of a head, P positions, S slots of the pool, C columns of
the fused product: (H + 2 J) K. The definitions are `rotate` in model/layers.py and `attend` in
batch_invariant.py.
"""

# Triton kernels are not what their Python types say:
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_decode import LOG2_E, load_rotated, load_slots, slot_steps
from .dequant import dot_in_float32
from .pdl import pdl_options, wait_then_trigger

PREFILL_BLOCK = 32
"""Tokens of a prompt begin at a multiple of this in the flat batch; a block belongs to one sequence."""


@triton.jit(do_not_specialize=["head_step", "slot_step"])
def _write(
    qkv,
    cos_table,
    sin_table,
    positions,
    starts,
    queries,
    keys,
    values,
    head_step,
    slot_step,
    H: tl.constexpr,
    J: tl.constexpr,
    K: tl.constexpr,
    H_PADDED: tl.constexpr,
    J_PADDED: tl.constexpr,
    K_PADDED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Rotated queries of one token to `queries` `[N, H K]`, its rotated key and its value to the cache."""
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token)
    slot = tl.load(starts + token) + position
    dtype = keys.dtype.element_ty
    k = tl.arange(0, K_PADDED)[None, :]
    cos = tl.load(cos_table + position * K + k, mask=k < K, other=0.0)
    sin = tl.load(sin_table + position * K + k, mask=k < K, other=0.0)
    wait_then_trigger(PDL)
    qkv += token * ((H + 2 * J) * K)
    h, j = tl.arange(0, H_PADDED)[:, None], tl.arange(0, J_PADDED)[:, None]
    mask_q, mask_kv = (h < H) & (k < K), (j < J) & (k < K)
    q = load_rotated(qkv + h * K, k, mask_q, cos, sin, K // 2)
    tl.store(queries + token * (H * K) + h * K + k, q.to(dtype), mask=mask_q)
    cache = (j.to(tl.int64) * head_step + slot * slot_step) * K + k
    key = load_rotated(qkv + (H + j) * K, k, mask_kv, cos, sin, K // 2)
    tl.store(keys + cache, key.to(dtype), mask=mask_kv)
    value = tl.load(qkv + (H + J + j) * K + k, mask=mask_kv, other=0.0)
    tl.store(values + cache, value.to(dtype), mask=mask_kv)


@triton.jit(do_not_specialize=["head_step", "slot_step", "N"])
def _attend(
    queries,
    positions,
    starts,
    keys,
    values,
    out,
    head_step,
    slot_step,
    scale,
    N,
    H: tl.constexpr,
    J: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_S: tl.constexpr,
    FLOAT32: tl.constexpr,
):
    """One head of two blocks of tokens, together if they belong to one sequence, else one after the other.

    Each token has its own start and position: tokens of a block that are of another sequence than its first
    are padding, and get zeros. The strides of the cache are `head_step` and `slot_step` times K: whatever
    they are, one compiled program serves.
    """
    TILE_T: tl.constexpr = 2 * BLOCK
    dtype = tl.float32 if FLOAT32 else queries.dtype.element_ty
    head = tl.program_id(0)
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * TILE_T  # the longest sequences' ends start first
    second = tl.minimum(first + BLOCK, N - BLOCK)  # the first block again, where there is no second
    tokens = first + tl.arange(0, TILE_T)
    in_batch = tokens < N
    k = tl.arange(0, K_PADDED)
    mask_K = k < K
    position = tl.load(positions + tokens, mask=in_batch, other=0).to(tl.int32)
    token_start = tl.load(starts + tokens, mask=in_batch, other=-1).to(tl.int64)
    first_start = tl.load(starts + first).to(tl.int64)
    second_start = tl.load(starts + second).to(tl.int64)
    offset = tokens.to(tl.int64)[:, None] * (H * K) + head * K + k[None, :]
    mask_q = in_batch[:, None] & mask_K[None, :]
    q = tl.load(queries + offset, mask=mask_q, other=0.0).to(dtype)
    slot_stride = slot_step.to(tl.int64) * K
    head_offset = (head // (H // J)) * head_step.to(tl.int64) * K

    for part in range(tl.where(first_start == second_start, 1, 2)):
        start = tl.where(part == 0, first_start, second_start)
        belongs = token_start == start
        stop = tl.max(tl.where(belongs, position, 0), axis=0) + 1
        sequence = head_offset + start * slot_stride
        row_max = tl.full([TILE_T], float("-inf"), tl.float32)
        total = tl.zeros([TILE_T], tl.float32)
        acc = tl.zeros([TILE_T, K_PADDED], tl.float32)
        for first_slot in range(0, stop, TILE_S):
            key = load_slots(keys + sequence, first_slot, stop, slot_stride, k, mask_K, TILE_S).to(dtype)
            value = load_slots(values + sequence, first_slot, stop, slot_stride, k, mask_K, TILE_S).to(dtype)
            scores = tl.dot(q, tl.trans(key), input_precision="ieee") * scale
            slots = first_slot + tl.arange(0, TILE_S)
            scores = tl.where(slots[None, :] <= position[:, None], scores, float("-inf"))
            new_max = tl.maximum(row_max, tl.max(scores, axis=1))
            rescale = tl.exp2(row_max - new_max)
            weights = tl.exp2(scores - new_max[:, None])
            total = total * rescale + tl.sum(weights, axis=1)
            acc = tl.dot(weights.to(dtype), value, acc * rescale[:, None], input_precision="ieee")
            row_max = new_max
        result = tl.where(belongs[:, None], acc / total[:, None], 0.0)
        mask = mask_q & (belongs | (part == 0))[:, None]
        tl.store(out + offset, result.to(out.dtype.element_ty), mask=mask)


def _padded(dim: int) -> int:
    """Dimensions of a tile for heads of `dim`; `tl.dot` takes 16 or more."""
    return max(16, triton.next_power_of_2(dim))


def rotate_and_write(
    qkv_NC: Tensor,
    rotary: tuple[Tensor, Tensor],
    positions_N: Tensor,
    starts_N: Tensor,
    keys_JSK: Tensor,
    values_JSK: Tensor,
    heads: int,
) -> Tensor:
    """Write all tokens' rotated keys and values to the cache; the rotated queries `[N, H K]`."""
    tokens, (kv_heads, _, dim) = len(qkv_NC), keys_JSK.shape
    queries = torch.empty(tokens, heads * dim, dtype=keys_JSK.dtype, device=keys_JSK.device)
    _write[(tokens,)](
        qkv_NC.contiguous(),
        *rotary,
        positions_N,
        starts_N,
        queries,
        keys_JSK,
        values_JSK,
        *slot_steps(keys_JSK, values_JSK),
        H=heads,
        J=kv_heads,
        K=dim,
        H_PADDED=triton.next_power_of_2(heads),
        J_PADDED=triton.next_power_of_2(kv_heads),
        K_PADDED=_padded(dim),
        num_warps=4,
        enable_fp_fusion=False,  # products are rounded before they are added, as in torch
        **pdl_options(queries),
    )
    return queries


def attend(
    qkv_NC: Tensor,
    rotary: tuple[Tensor, Tensor],
    positions_N: Tensor,
    starts_N: Tensor,
    keys_JSK: Tensor,
    values_JSK: Tensor,
    heads: int,
) -> Tensor:
    """Causal attention of chunks of prompts, `[N, H K]`; N is a multiple of PREFILL_BLOCK.

    `qkv_NC` holds each token's queries, keys and values of all heads, not yet rotated; `rotary` holds the
    cosines and sines of all positions, `[P, K]`. A token's sequence is in the slots of the pool from its
    start on: keys and values are written to slots `start + position`, and all slots from `start` up to it
    are read; those before the chunk are in the cache already. Each block of PREFILL_BLOCK tokens belongs to
    one sequence, its first token's; its other tokens are padding, as are blocks of a scratch sequence.
    """
    tokens, (kv_heads, _, dim) = len(qkv_NC), keys_JSK.shape
    assert tokens % PREFILL_BLOCK == 0
    queries = rotate_and_write(qkv_NC, rotary, positions_N, starts_N, keys_JSK, values_JSK, heads)
    out = torch.empty_like(queries)
    is_float32 = keys_JSK.dtype == torch.float32
    _attend[heads, triton.cdiv(tokens, 2 * PREFILL_BLOCK)](
        queries,
        positions_N,
        starts_N,
        keys_JSK,
        values_JSK,
        out,
        *slot_steps(keys_JSK, values_JSK),
        dim**-0.5 * LOG2_E,
        tokens,
        H=heads,
        J=kv_heads,
        K=dim,
        K_PADDED=_padded(dim),
        BLOCK=PREFILL_BLOCK,
        TILE_S=32 if is_float32 else 64,
        FLOAT32=dot_in_float32(keys_JSK.dtype),
        num_warps=8 if is_float32 else 4,
        num_stages=2,
    )
    return out
