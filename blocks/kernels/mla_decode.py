"""Multi-head latent attention of one query per row over the cache, on CUDA: launches the kernels of
`mla_decode_triton`.

Launches depend on shapes alone, so one captured graph serves every position.

B rows, T = 1 position, S cache slots, H heads, R rank of the latent, P dimensions of the rotary part, C = R +
P, N dimensions of the rest of a query or key, V dimensions of a value, D = H (N + P).
"""

# Triton kernels are not what their Python types say:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportCallIssue=false

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .batch_invariant import per_head_matmul
from .dequant import dot_in_float32
from .mla_decode_triton import absorb_kernel, attention_kernel, combine_kernel
from .mla_pooled import attend_pooled as attend_pooled
from .pdl import pdl_options

MAX_FUSED_ROWS = 8
"""Most rows for which the kernels multiply by `kv_b_proj` themselves; for more, batched products are
faster."""
BLOCK_H = 16
MIN_SPLIT = 32
"""Fewest slots of a split."""
MAX_PROGRAMS = 1024
"""Splits are made longer to stay within this many programs."""
MAX_SPLITS = 64
"""Splits are made longer to stay within this number, as every tile of a head's values reads all splits."""
TILE_R, TILE_V = 64, 64
COMBINE_BLOCK = 4
"""Splits that the combining kernel reads at a time."""
_WARPS = 8
_LOG2_E = 1.4426950408889634


class _Rotary(NamedTuple):
    """Cosines and sines of the rows' positions, or, if `of_slots`, of all positions."""

    cos: Tensor
    sin: Tensor
    of_slots: bool


class _Sizes(NamedTuple):
    heads: int
    rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int

    @property
    def blocks(self) -> dict[str, int]:
        return {
            "BLOCK_R": max(triton.next_power_of_2(self.rank), 16),
            "BLOCK_P": max(triton.next_power_of_2(self.rope_dim), 16),
        }

    def per_head(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """`kv_b_proj` as two weights: into the latent space, `[H, N, R]`, and out of it, `[H, V, R]`."""
        weight_HKR = weight.unflatten(0, (self.heads, -1))
        into_HNR, out_of_HVR = weight_HKR.split((self.nope_dim, self.value_dim), dim=1)
        return into_HNR, out_of_HVR


def plan_split(programs: int, span: int) -> int:
    """Slots per split, for `programs` programs per split."""
    split = MIN_SPLIT
    while split < span:
        splits = triton.cdiv(span, split)
        if splits <= MAX_SPLITS and programs * splits <= MAX_PROGRAMS:
            break
        split *= 2
    return split


def attend(
    q_BTD: Tensor,
    kv_BTC: Tensor,
    slots_BSC: Tensor,
    positions_BT: Tensor,
    rotary: tuple[Tensor, Tensor],
    norm: tuple[Tensor, float],
    weight: Tensor,
    *,
    nope_dim: int,
    span: int,
    rotary_of_slots: bool = False,
) -> Tensor:
    """Write the new position of each row into the cache and attend to the slots up to it, `[B, 1, H V]`.

    `q_BTD` and `kv_BTC` are the outputs of the query and latent projections, or views of one tensor that
    holds both. `slots_BSC` is the cache of this layer, of which attention reads at most `span` slots.
    `rotary` holds the cosines and sines of `positions_BT`, or with `rotary_of_slots` those of all positions,
    `[S, P]`. `norm` is the weight `[R]` and eps of the latent's norm, `weight` is that of `kv_b_proj`,
    `[H (N + V), R]`.

    Positions and rotary tables must be complete before the preceding kernel starts (see pdl.py).
    """
    rank = len(norm[0])
    rope_dim = kv_BTC.shape[2] - rank
    heads = q_BTD.shape[2] // (nope_dim + rope_dim)
    sizes = _Sizes(heads, rank, rope_dim, nope_dim, len(weight) // heads - nope_dim)
    assert slots_BSC.stride(1) == slots_BSC.shape[2] == rank + rope_dim, "the slots of a row are contiguous"
    assert all(table.is_contiguous() for table in rotary), "rotary tables are contiguous"
    assert q_BTD.stride(2) == kv_BTC.stride(2) == 1, "the numbers of a row are contiguous"
    tables = _Rotary(*rotary, rotary_of_slots)
    query_BHC = _absorb((q_BTD, kv_BTC), slots_BSC, positions_BT, tables, norm, weight, sizes)
    split = plan_split(len(q_BTD) * triton.cdiv(heads, BLOCK_H), span)
    partials = _attend_splits(query_BHC, slots_BSC, positions_BT, sizes, split, triton.cdiv(span, split))
    return _combine(partials, positions_BT, weight, sizes, split, q_BTD.dtype)[:, None]


def _absorb(
    projected: tuple[Tensor, Tensor],
    slots_BSC: Tensor,
    positions_BT: Tensor,
    rotary: _Rotary,
    norm: tuple[Tensor, float],
    weight: Tensor,
    sizes: _Sizes,
) -> Tensor:
    """Write the new slots; returns the queries in the latent space with their rotated parts, `[B, H, C]`."""
    q_BTD, kv_BTC = projected
    (heads, rank, rope_dim, nope_dim, value_dim), rows = sizes, len(q_BTD)
    fused = rows <= MAX_FUSED_ROWS
    query_BHC = q_BTD.new_empty(rows, heads, rank + rope_dim)
    absorb_kernel[(1 + heads + (heads * triton.cdiv(rank, TILE_R) if fused else 0), rows)](
        q_BTD,
        kv_BTC,
        norm[0],
        weight,
        rotary.cos,
        rotary.sin,
        positions_BT,
        slots_BSC,
        query_BHC,
        norm[1],
        q_BTD.stride(0),
        kv_BTC.stride(0),
        slots_BSC.stride(0),
        positions_BT.stride(0),
        slots_BSC.shape[1],
        len(rotary.cos) - 1,
        H=heads,
        N=nope_dim,
        V=value_dim,
        R=rank,
        P=rope_dim,
        ROTARY_OF_SLOTS=rotary.of_slots,
        BLOCK_N=min(triton.next_power_of_2(nope_dim), 128),
        TILE_R=TILE_R,
        **sizes.blocks,
        **pdl_options(q_BTD),
    )
    if not fused:
        q_BHN = q_BTD[:, 0].unflatten(-1, (heads, -1))[..., :nope_dim]
        query_BHC[..., :rank] = per_head_matmul(q_BHN[:, :, None], sizes.per_head(weight)[0])[:, :, 0]
    return query_BHC


def _attend_splits(
    query_BHC: Tensor, slots_BSC: Tensor, positions_BT: Tensor, sizes: _Sizes, split: int, splits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted sum of latents, maximum score and sum of weights of each row, head and split."""
    rows, heads = query_BHC.shape[:2]
    sums_BHSR = query_BHC.new_empty(rows, heads, splits, sizes.rank, dtype=torch.float32)
    row_max_BHS, totals_BHS = query_BHC.new_empty(2, rows, heads, splits, dtype=torch.float32)
    is_float32 = query_BHC.dtype == torch.float32
    attention_kernel[(splits, triton.cdiv(heads, BLOCK_H), rows)](
        query_BHC,
        slots_BSC,
        positions_BT,
        sums_BHSR,
        row_max_BHS,
        totals_BHS,
        (sizes.nope_dim + sizes.rope_dim) ** -0.5 * _LOG2_E,
        slots_BSC.stride(0),
        positions_BT.stride(0),
        splits,
        slots_BSC.shape[1],
        H=heads,
        R=sizes.rank,
        P=sizes.rope_dim,
        SPLIT=split,
        FLOAT32=dot_in_float32(query_BHC.dtype),
        BLOCK_H=BLOCK_H,
        BLOCK_S=min(split, 16 if is_float32 else 32),
        num_stages=1 if is_float32 else 2,
        num_warps=_WARPS,
        **sizes.blocks,
        **pdl_options(query_BHC),
    )
    return sums_BHSR, row_max_BHS, totals_BHS


def _combine(
    partials: tuple[Tensor, Tensor, Tensor],
    positions_BT: Tensor,
    weight: Tensor,
    sizes: _Sizes,
    split: int,
    dtype: torch.dtype,
) -> Tensor:
    """Combine the splits and project the result out of the latent space, `[B, H V]`."""
    rows, heads, splits, rank = partials[0].shape
    fused = rows <= MAX_FUSED_ROWS
    out = weight.new_empty(rows, heads, sizes.value_dim if fused else rank, dtype=dtype)
    combine_kernel[(triton.cdiv(sizes.value_dim, TILE_V) if fused else 1, heads, rows)](
        *partials,
        positions_BT,
        weight,
        out,
        positions_BT.stride(0),
        splits,
        H=heads,
        N=sizes.nope_dim,
        V=sizes.value_dim,
        R=rank,
        SPLIT=split,
        PROJECT=fused,
        BLOCK_R=sizes.blocks["BLOCK_R"],
        BLOCK_G=COMBINE_BLOCK,
        SPLITS=triton.next_power_of_2(splits),
        TILE_V=TILE_V,
        num_warps=_WARPS,
        **pdl_options(out),
    )
    if not fused:
        out = per_head_matmul(out[:, :, None], sizes.per_head(weight)[1].transpose(1, 2))
    return out.reshape(rows, -1)
