"""Latent attention of one query a row over the cache, on CUDA, by the kernels of `latent_kernels`.

Shapes alone decide what is launched, so that a captured step serves every position.

B rows, S cache slots, H heads, R rank of the latent, P dimensions of the rotary part, C = R + P, N dimensions
of the rest of a query or key, V dimensions of a value.
"""

# What Triton compiles is not what its Python types say:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportCallIssue=false

from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor

from .batch_invariant import per_head_matmul
from .dequant import dot_in_float32
from .mla_decode_triton import attend_kernel, enter_kernel, leave_kernel
from .pdl import launching

if TYPE_CHECKING:
    from ..model.decoder import Step
    from ..model.mla import LatentAttention

_FEW = 8  # rows up to which the products into and out of the latent's space are made by these kernels
_HEADS = 16  # of a block
_SPLIT = 32  # slots at least
_MOST_BLOCKS = 1024  # beyond which splits get longer
_MOST_SPLITS = 64  # likewise, as each of them is read again for every tile of every head's values
_TILE_R, _TILE_V = 64, 64
_WARPS = 8
_GROUP, _LEAVE_WARPS = 4, 8  # of the kernel that puts splits together: splits at a time
_LOG2_E = 1.4426950408889634


def plan_split(programs: int, span: int) -> int:
    """Slots of a split, for so many programs each: by shapes alone, so that a graph serves every fill."""
    split = _SPLIT
    while split < span:
        splits = triton.cdiv(span, split)
        if splits <= _MOST_SPLITS and programs * splits <= _MOST_BLOCKS:
            break
        split *= 2
    return split


def attend_latent(
    layer: "LatentAttention", q_BTD: Tensor, kv_BTC: Tensor, step: "Step", tables: bool = False
) -> Tensor:
    """The new slots written into the cache, and what the one query of each row gathers, `[B, 1, H * V]`.

    `q_BTD` and `kv_BTC` are the outputs of the layer's projections, `[B, 1, H * (N + P)]` and `[B, 1, C]`, or
    views of one that holds both. The step's positions, and its cosines and sines, are older than the last
    kernel before; with `tables` they are those of all positions, `[S, P]`.
    """
    assert step.cache is not None
    sizes, heads, rows = layer.sizes, layer.num_heads, len(q_BTD)
    rank, turns, weight = sizes.kv_rank, sizes.rope_dim, layer.kv_b_proj.weight
    slots_BSC = step.cache.buffers[0][layer.layer][:, :, 0]
    positions, (cos, sin) = step.positions_BT, step.rotary
    assert slots_BSC.stride(1) == rank + turns, "a row's slots lie side by side"
    assert cos.is_contiguous(), "rotary tables are contiguous"
    assert sin.is_contiguous(), "rotary tables are contiguous"
    assert q_BTD.stride(2) == kv_BTC.stride(2) == 1, "a row's numbers lie side by side"
    few, early = rows <= _FEW, launching(q_BTD)
    pads = {
        "BLOCK_R": max(triton.next_power_of_2(rank), 16),
        "BLOCK_P": max(triton.next_power_of_2(turns), 16),
    }
    widths = {"H": heads, "R": rank}
    query_BHC = q_BTD.new_empty(rows, heads, rank + turns)
    enter_kernel[(1 + heads + (heads * triton.cdiv(rank, _TILE_R) if few else 0), rows)](
        q_BTD,
        kv_BTC,
        layer.kv_a_layernorm.weight,
        weight,
        cos,
        sin,
        positions,
        slots_BSC,
        query_BHC,
        layer.kv_a_layernorm.eps,
        q_BTD.stride(0),
        kv_BTC.stride(0),
        slots_BSC.stride(0),
        positions.stride(0),
        slots_BSC.shape[1],
        len(cos) - 1,
        N=sizes.nope_dim,
        V=sizes.value_dim,
        P=turns,
        TABLES=tables,
        BLOCK_N=min(triton.next_power_of_2(sizes.nope_dim), 128),
        TILE_R=_TILE_R,
        **widths,
        **pads,
        **early,
    )
    weight_HKR = weight.unflatten(0, (heads, -1))
    to_latent_HNR, from_latent_HVR = weight_HKR.split((sizes.nope_dim, sizes.value_dim), dim=1)
    if not few:
        q_BHN = q_BTD[:, 0].unflatten(-1, (heads, -1))[..., : sizes.nope_dim]
        query_BHC[..., :rank] = per_head_matmul(q_BHN[:, :, None], to_latent_HNR)[:, :, 0]
    blocks = triton.cdiv(heads, _HEADS)
    split = plan_split(rows * blocks, step.cache.span)
    splits = triton.cdiv(step.cache.span, split)
    parts = q_BTD.new_empty(rows, heads, splits, rank, dtype=torch.float32)
    tops, sums = q_BTD.new_empty(2, rows, heads, splits, dtype=torch.float32)
    wide = q_BTD.dtype == torch.float32
    tile = min(split, 16 if wide else 32)
    attend_kernel[(splits, blocks, rows)](
        query_BHC,
        slots_BSC,
        positions,
        parts,
        tops,
        sums,
        layer.query_dim**-0.5 * _LOG2_E,
        slots_BSC.stride(0),
        positions.stride(0),
        splits,
        slots_BSC.shape[1],
        P=turns,
        SPLIT=split,
        EXACT=dot_in_float32(q_BTD.dtype),
        BLOCK_H=_HEADS,
        BLOCK_S=tile,
        num_stages=1 if wide else 2,
        num_warps=_WARPS,
        **widths,
        **pads,
        **early,
    )
    out = q_BTD.new_empty(rows, heads, sizes.value_dim if few else rank)
    leave_kernel[(triton.cdiv(sizes.value_dim, _TILE_V) if few else 1, heads, rows)](
        parts,
        tops,
        sums,
        positions,
        weight,
        out,
        positions.stride(0),
        splits,
        N=sizes.nope_dim,
        V=sizes.value_dim,
        SPLIT=split,
        PROJECT=few,
        BLOCK_R=pads["BLOCK_R"],
        BLOCK_G=_GROUP,
        SPLITS=triton.next_power_of_2(splits),
        TILE_V=_TILE_V,
        num_warps=_LEAVE_WARPS,
        **widths,
        **early,
    )
    if not few:
        out = per_head_matmul(out[:, :, None], from_latent_HVR.transpose(1, 2))
    return out.reshape(rows, 1, -1)
