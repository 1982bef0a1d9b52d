"""A mixture of experts on CUDA, for any number of tokens: three launches after the router's two, and one
that sorts many pairs.

Launches never synchronize and depend on shapes alone. A token's output has the same bits whatever other
tokens there are (see moe_decode_triton.py).

N tokens, D model width, E experts, I width of an expert, K experts per token, P = N * K token-expert pairs, R
rows of a tile, B blocks of up to R pairs of one expert.
"""

# Triton kernels take tensors where their signatures name no types:
# pyright: reportArgumentType=false, reportCallIssue=false

from math import gcd
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .codec import WeightTensors
from .dequant import dot_in_float32
from .gemv import shared_memory
from .moe_decode_triton import down_kernel, gate_up_kernel, sort_kernel, sum_kernel
from .pdl import pdl_options, prefetch_options

SharedExperts = tuple[WeightTensors, WeightTensors, WeightTensors]
"""Gate, up and down weights of the feed-forward that combines all shared experts."""

_PREFETCH_BYTES = 1024  # of each weight row, into L2, while a program waits for the preceding kernel
_SCANNED_PAIRS = 128  # up to here, every program looks for the pairs of its expert itself
_PAIRS_AT_ONCE = (256, 2048)  # that a sorting program reads at a time, at least and at most
_LARGE_TILES = 160 << 10  # bytes of shared memory per program that the largest tiles take


class Tile(NamedTuple):
    """The tile of a program: outputs, inputs per iteration of its loop, warps and pipeline stages."""

    outputs: int
    inputs: int
    warps: int
    stages: int


TILES = {
    8: (Tile(16, 128, warps=2, stages=5), Tile(16, 128, warps=1, stages=6)),
    16: (Tile(32, 128, warps=4, stages=3), Tile(32, 128, warps=2, stages=5)),
    32: (Tile(32, 128, warps=4, stages=3), Tile(64, 128, warps=4, stages=3)),
    64: (Tile(64, 64, warps=4, stages=4), Tile(128, 64, warps=4, stages=4)),
    128: (Tile(128, 64, warps=8, stages=3), Tile(256, 64, warps=8, stages=3)),
}
"""Tiles by their rows: of gates with as many ups, and of the down projection."""
QUANTIZED_TILES = {
    8: (Tile(16, 256, warps=2, stages=5), Tile(16, 256, warps=1, stages=6)),
    16: (Tile(32, 128, warps=2, stages=5), Tile(32, 128, warps=2, stages=5)),
    32: (Tile(32, 128, warps=2, stages=4), Tile(64, 128, warps=2, stages=4)),
    64: (Tile(32, 64, warps=2, stages=4), Tile(64, 64, warps=2, stages=4)),
}
"""The same for codes. With four warps, Triton would load them four bytes at a time."""


class Blocks(NamedTuple):
    """Token-expert pairs in blocks of one expert.

    experts: the expert of each block, `[B]`; -1 if it has none.
    pairs: the pairs of each block, `[B, R]`; -1 if there are fewer. Meaningful for sorted pairs only.
    rows: R.
    scanned: see `_pairs_of_block`.
    """

    experts: Tensor
    pairs: Tensor
    rows: int
    scanned: int


def _sort_pairs(expert_ids_NK: Tensor, experts: int, rows: int) -> Blocks:
    """Pairs sorted by expert. The number of blocks is an upper bound from the shapes alone."""
    pairs = expert_ids_NK.numel()
    count = min(pairs, pairs // rows + experts)
    block_experts = expert_ids_NK.new_empty(count, dtype=torch.int32)
    block_pairs = expert_ids_NK.new_empty(count, rows, dtype=torch.int32)
    sort_kernel[(experts,)](
        expert_ids_NK,
        block_experts,
        block_pairs,
        pairs,
        count,
        experts,
        R=rows,
        BLOCK_E=triton.next_power_of_2(experts + 1),
        BLOCK_P=min(max(triton.next_power_of_2(pairs), _PAIRS_AT_ONCE[0]), _PAIRS_AT_ONCE[1]),
        **pdl_options(expert_ids_NK),
    )
    return Blocks(block_experts, block_pairs, rows, scanned=0)


def _make_blocks(expert_ids_NK: Tensor, experts: int, most_rows: int) -> Blocks:
    count, pairs = len(expert_ids_NK), expert_ids_NK.numel()
    if count == 1:
        return Blocks(expert_ids_NK, expert_ids_NK, rows=8, scanned=1)
    if pairs <= _SCANNED_PAIRS:
        return Blocks(expert_ids_NK, expert_ids_NK, rows=16, scanned=triton.next_power_of_2(_SCANNED_PAIRS))
    mean = pairs // experts  # most experts' pairs should be few blocks, and fill them
    rows = 16 if mean <= 8 else 32 if mean <= 20 else 64 if mean < 128 else 128
    return _sort_pairs(expert_ids_NK, experts, min(rows, most_rows))


def _most_rows(x_ND: Tensor, weight: WeightTensors) -> int:
    """Rows of the largest tile."""
    if x_ND.dtype == torch.float32:
        return 32
    return 128 if weight.kind == "plain" and shared_memory(x_ND.device) >= _LARGE_TILES else 64


def fused_experts(
    x_ND: Tensor,
    gate_up: WeightTensors,
    down: WeightTensors,
    expert_ids_NK: Tensor,
    weights_NK: Tensor,
    shared: SharedExperts | None = None,
) -> Tensor:
    """The weighted sum of the selected experts' outputs, plus the output of the `shared` experts (see
    `can_fuse_shared`); `[N, D]` in the dtype of `x_ND`."""
    (count, width), (pairs, top_k) = x_ND.shape, (expert_ids_NK.numel(), expert_ids_NK.shape[1])
    inner = gate_up.codes.shape[1] // 2
    num_shared = 0 if shared is None else len(shared[0]) // inner
    shared_gate, shared_up, shared_down = shared or (gate_up, gate_up, down)
    blocks = _make_blocks(expert_ids_NK, len(gate_up), _most_rows(x_ND, gate_up))
    routed_blocks, shared_blocks = blocks.experts.numel(), triton.cdiv(count, blocks.rows)
    hidden = x_ND.new_empty(inner * (pairs + num_shared * count))
    outputs = x_ND.new_empty(pairs + min(num_shared, 1) * count, width)
    gate_up_tile, down_tile = (TILES if gate_up.kind == "plain" else QUANTIZED_TILES)[blocks.rows]
    gate_up_kernel[(triton.cdiv(inner, gate_up_tile.outputs), routed_blocks + num_shared * shared_blocks)](
        x_ND,
        blocks.experts,
        blocks.pairs,
        *gate_up.kernel_arguments,
        *shared_gate.kernel_arguments,
        *_distances(shared_gate, shared_up),
        hidden,
        count,
        pairs,
        INNER=inner,
        K=top_k,
        S=num_shared,
        **_linear_options(x_ND, gate_up, width, blocks, gate_up_tile),
    )
    down_kernel[(triton.cdiv(width, down_tile.outputs), routed_blocks + min(num_shared, 1) * shared_blocks)](
        hidden,
        blocks.experts,
        blocks.pairs,
        *down.kernel_arguments,
        *shared_down.kernel_arguments,
        outputs,
        count,
        pairs,
        D=width,
        S=num_shared,
        **_linear_options(x_ND, down, inner, blocks, down_tile),
    )
    return _weighted_sum(outputs, weights_NK, num_shared, torch.empty_like(x_ND))


def _weighted_sum(outputs: Tensor, weights_NK: Tensor, num_shared: int, out_ND: Tensor) -> Tensor:
    """Sum the outputs of each token's pairs and shared experts into `out_ND`."""
    (count, width), top_k = out_ND.shape, weights_NK.shape[1]
    sum_kernel[(count, triton.cdiv(width, 256))](
        outputs,
        weights_NK,
        out_ND,
        weights_NK.numel(),
        D=width,
        K=top_k,
        S=num_shared,
        BLOCK_D=256,
        enable_fp_fusion=False,
        **pdl_options(out_ND),
    )
    return out_ND


def _distances(first: WeightTensors, second: WeightTensors) -> list[int]:
    """How many numbers each tensor of the second weight is behind that of the first in memory."""
    pairs = zip(first.kernel_arguments, second.kernel_arguments, strict=True)
    return [(b.data_ptr() - a.data_ptr()) // a.itemsize for a, b in pairs]


def _linear_options(
    x_ND: Tensor, weight: WeightTensors, inputs: int, blocks: Blocks, tile: Tile
) -> dict[str, Any]:
    """Constants and launch options of a kernel that multiplies tiles of rows by a weight."""
    half = 2 if weight.kind == "int4" else 1
    float32 = x_ND.dtype == torch.float32
    columns, most = inputs // half, (32 if float32 else tile.inputs) // half
    block_columns = gcd(columns, most)
    if block_columns < 32:  # beyond the end, columns are masked
        block_columns = min(max(triton.next_power_of_2(columns), 32), max(most, 32))
    return {
        "COLUMNS": weight.codes.shape[-1],
        "KIND": weight.kind,
        "GROUP_C": weight.group_columns,
        "FLOAT32": dot_in_float32(x_ND.dtype),
        "R": blocks.rows,
        "BLOCK_P": blocks.scanned,
        "BLOCK_O": tile.outputs,
        "BLOCK_C": block_columns,
        **prefetch_options(weight.codes, _PREFETCH_BYTES),
        "num_warps": tile.warps,
        "num_stages": 2 if float32 else tile.stages,
        **pdl_options(x_ND),
    }


def can_fuse_shared(shared: SharedExperts, gate_up: WeightTensors, down: WeightTensors) -> bool:
    """Whether the kernels can compute the shared feed-forward with the experts."""
    pairs = zip(shared, (gate_up, gate_up, down), strict=True)
    return all(
        (a.kind, a.group_columns, a.codes.dtype) == (b.kind, b.group_columns, b.codes.dtype) for a, b in pairs
    )
