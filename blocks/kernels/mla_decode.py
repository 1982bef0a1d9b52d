"""Multi-head latent attention over a pool of slots on CUDA: launches the kernels of `mla_decode_triton`.

A token's bits don't depend on the other tokens of the pass, the span, or the place of its sequence in the
pool. Launches depend on shapes alone, so one captured graph serves every position.

N tokens, S slots of the pool, H heads, R rank of the latent, P dimensions of the rotary part, C = R + P, E
dimensions of the rest of a query or key, V dimensions of a value, D = H (E + P).
"""

# Triton kernels are not what their Python types say:
# pyright: reportArgumentType=false, reportCallIssue=false

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .dequant import dot_in_float32
from .mla_decode_triton import absorb_kernel, attention_kernel, combine_kernel, project_kernel
from .pdl import pdl_options, prefetch_options

CHUNK = 32
"""Slots of a chunk, whose size determines the bits of a result; half of it in float32."""
MAX_SPLIT_PROGRAMS = 24
"""Most programs, one per token and block of heads, whose chunks are attended to by programs of their own and
combined afterwards; more programs each go over all of their tokens' chunks."""
MAX_FUSED_TOKENS = 8
"""Most tokens that the combining kernel projects out of the latent space itself."""
TOKENS = 4
"""Tokens of a prompt that one program attends with on Hopper, whose tensor cores read the queries from shared
memory; elsewhere, one."""
BLOCK_H = 16
_TILE_R, _TILE_V = 64, 64
_LOG2_E = 1.4426950408889634


class _Sizes(NamedTuple):
    heads: int
    rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    dtype: torch.dtype
    scale: float

    @property
    def chunk(self) -> int:
        return CHUNK // 2 if self.dtype == torch.float32 else CHUNK

    @property
    def constants(self) -> dict[str, Any]:
        """Arguments of all kernels."""
        return {"H": self.heads, "R": self.rank, "FLOAT32": dot_in_float32(self.dtype)}

    @property
    def blocks(self) -> dict[str, Any]:
        return {
            "P": self.rope_dim,
            "BLOCK_R": max(triton.next_power_of_2(self.rank), 32),
            "BLOCK_P": max(triton.next_power_of_2(self.rope_dim), 16),
        }


def attend_pooled(
    q_ND: Tensor,
    kv_NC: Tensor,
    slots_SC: Tensor,
    positions_N: Tensor,
    starts_N: Tensor,
    rotary: tuple[Tensor, Tensor],
    norm: tuple[Tensor, float],
    weight: Tensor,
    *,
    nope_dim: int,
    span: int,
    score_factor: float = 1.0,
    block: int = 1,
) -> Tensor:
    """Write every token into the pool, then attend with each to the slots of its sequence up to its own,
    `[N, H V]`.

    `q_ND` and `kv_NC` are the outputs of the query and latent projections, or views of one tensor that holds
    both. `slots_SC` is this layer's pool; token n's slot is `starts_N[n] + positions_N[n]`. Positions are
    less than `span`. `rotary` holds the cosines and sines of all positions, `[S, P]`. `norm` is the weight
    `[R]` and eps of the latent's norm, `weight` is that of `kv_b_proj`, `[H (E + V), R]`. `score_factor`
    multiplies scores, beside the root of a query's dimensions by which they are divided. Each aligned
    `block` of tokens is one sequence's, at consecutive positions, up to tokens whose results are not used.

    Positions, starts and rotary tables must be complete before the preceding kernel starts (see pdl.py).
    """
    rank = len(norm[0])
    rope_dim = kv_NC.shape[1] - rank
    heads = q_ND.shape[1] // (nope_dim + rope_dim)
    values = len(weight) // heads - nope_dim
    scale = score_factor * (nope_dim + rope_dim) ** -0.5
    sizes = _Sizes(heads, rank, rope_dim, nope_dim, values, q_ND.dtype, scale)
    assert slots_SC.is_contiguous(), "the pool is contiguous"
    assert all(table.is_contiguous() for table in rotary), "rotary tables are contiguous"
    assert q_ND.stride(1) == kv_NC.stride(1) == 1, "the numbers of a token are contiguous"
    places = positions_N.contiguous(), starts_N.contiguous()
    query_NHC = _absorb((q_ND, kv_NC), slots_SC, places, rotary, norm, weight, sizes)
    if len(q_ND) * triton.cdiv(heads, BLOCK_H) > MAX_SPLIT_PROGRAMS:
        return _project(_attend(query_NHC, slots_SC, places, sizes, block), weight, sizes)
    chunks = triton.cdiv(span, sizes.chunk)
    partials = _attend_to_chunks(query_NHC, slots_SC, places, sizes, chunks)
    return _combine(*partials, places[0], weight, sizes)


def _absorb(
    projected: tuple[Tensor, Tensor],
    slots_SC: Tensor,
    places: tuple[Tensor, Tensor],
    rotary: tuple[Tensor, Tensor],
    norm: tuple[Tensor, float],
    weight: Tensor,
    sizes: _Sizes,
) -> Tensor:
    """Write the new slots; returns the queries in the latent space with their rotated parts, `[N, H, C]`."""
    q_ND, kv_NC = projected
    tokens, heads = len(q_ND), sizes.heads
    query_NHC = q_ND.new_empty(tokens, heads, sizes.rank + sizes.rope_dim)
    block = 16 if tokens <= 16 else 64
    absorb_kernel[(tokens + heads * triton.cdiv(sizes.rank, _TILE_R) * triton.cdiv(tokens, block),)](
        q_ND,
        kv_NC,
        norm[0],
        weight,
        *rotary,
        *places,
        slots_SC,
        query_NHC,
        norm[1],
        q_ND.stride(0),
        kv_NC.stride(0),
        tokens,
        E=sizes.nope_dim,
        V=sizes.value_dim,
        PADDED_H=triton.next_power_of_2(heads),
        BLOCK_N=block,
        BLOCK_E=max(min(triton.next_power_of_2(sizes.nope_dim), 128), 16),
        TILE_R=_TILE_R,
        enable_fp_fusion=False,
        **sizes.constants,
        **sizes.blocks,
        **pdl_options(q_ND),
    )
    return query_NHC


def _launch_attention(
    query_NHC: Tensor,
    slots_SC: Tensor,
    places: tuple[Tensor, Tensor],
    sizes: _Sizes,
    outputs: tuple[Tensor, Tensor],
    chunks: int,
    tokens: int,
) -> None:
    """`chunks`: 0 to go over all slots of each token. `tokens`: those of a program."""
    heads = triton.cdiv(sizes.heads, BLOCK_H)
    attention_kernel[(max(chunks, 1), heads, triton.cdiv(len(query_NHC), tokens))](
        query_NHC,
        slots_SC,
        *places,
        *outputs,
        sizes.scale * _LOG2_E,
        len(query_NHC),
        chunks,
        CHUNK=sizes.chunk,
        SPLIT=chunks > 0,
        TOKENS=tokens,
        BLOCK_H=BLOCK_H,
        **prefetch_options(slots_SC, 1 << 16),
        enable_fp_fusion=False,
        num_stages=1 if chunks or sizes.dtype == torch.float32 else 3,
        num_warps=8,
        **sizes.constants,
        **sizes.blocks,
        **pdl_options(query_NHC),
    )


def _attend_to_chunks(
    query_NHC: Tensor, slots_SC: Tensor, places: tuple[Tensor, Tensor], sizes: _Sizes, chunks: int
) -> tuple[Tensor, Tensor]:
    """The weighted sum of latents of each token, head and chunk, and the maximum score and sum of weights."""
    shape = (*query_NHC.shape[:2], chunks)
    sums_NHSR = query_NHC.new_empty(*shape, sizes.rank, dtype=torch.float32)
    stats_NHS2 = query_NHC.new_empty(*shape, 2, dtype=torch.float32)
    _launch_attention(query_NHC, slots_SC, places, sizes, (sums_NHSR, stats_NHS2), chunks, 1)
    return sums_NHSR, stats_NHS2


def _attend(
    query_NHC: Tensor, slots_SC: Tensor, places: tuple[Tensor, Tensor], sizes: _Sizes, block: int
) -> Tensor:
    """The mean latents of each token and head, `[N, H, R]`."""
    latent_NHR = query_NHC.new_empty(*query_NHC.shape[:2], sizes.rank)
    is_cuda = query_NHC.device.type == "cuda"
    hopper = not is_cuda or torch.cuda.get_device_capability(query_NHC.device)[0] == 9
    tokens = TOKENS if hopper and block % TOKENS == 0 and sizes.dtype != torch.float32 else 1
    _launch_attention(query_NHC, slots_SC, places, sizes, (latent_NHR, latent_NHR), 0, tokens)
    return latent_NHR


def _combine(
    sums_NHSR: Tensor, stats_NHS2: Tensor, positions_N: Tensor, weight: Tensor, sizes: _Sizes
) -> Tensor:
    """Fold the chunks and project the result out of the latent space, `[N, H V]`."""
    tokens, heads, chunks, rank = sums_NHSR.shape
    fused = tokens <= MAX_FUSED_TOKENS
    out = weight.new_empty(tokens, heads, sizes.value_dim if fused else rank, dtype=sizes.dtype)
    combine_kernel[(triton.cdiv(sizes.value_dim, _TILE_V) if fused else 1, heads, tokens)](
        sums_NHSR,
        stats_NHS2,
        positions_N,
        weight,
        out,
        chunks,
        E=sizes.nope_dim,
        V=sizes.value_dim,
        CHUNK=sizes.chunk,
        PROJECT=fused,
        BLOCK_R=triton.next_power_of_2(rank),
        TILE_V=_TILE_V,
        enable_fp_fusion=False,
        num_warps=8 if fused else 4,
        **sizes.constants,
        **pdl_options(out),
    )
    return out.flatten(1) if fused else _project(out, weight, sizes)


def _project(latent_NHR: Tensor, weight: Tensor, sizes: _Sizes) -> Tensor:
    """Mean latents out of the latent space, `[N, H V]`."""
    tokens, heads, _ = latent_NHR.shape
    out = latent_NHR.new_empty(tokens, heads, sizes.value_dim)
    block = 16 if tokens <= 32 else 64
    project_kernel[(triton.cdiv(sizes.value_dim, _TILE_V), heads, triton.cdiv(tokens, block))](
        latent_NHR,
        weight,
        out,
        tokens,
        E=sizes.nope_dim,
        V=sizes.value_dim,
        BLOCK_N=block,
        BLOCK_R=64,
        TILE_V=_TILE_V,
        num_stages=4 if sizes.dtype != torch.float32 else 2,
        **sizes.constants,
        **pdl_options(out),
    )
    return out.flatten(1)
