"""A mixture of experts for few tokens on CUDA: three launches after the router's two.

Launches never synchronize and depend on shapes alone.

N tokens, D model width, E experts, I width of an expert, K experts per token, P = N * K token-expert pairs.
"""

# Triton kernels take tensors where their signatures name no types:
# pyright: reportArgumentType=false, reportCallIssue=false

from math import gcd
from typing import Any

import torch
import triton
from torch import Tensor

from .codec import WeightTensors
from .dequant import dot_in_float32
from .moe_decode_triton import down_kernel, gate_up_kernel, sum_kernel
from .pdl import pdl_options, prefetch_options

SharedExperts = tuple[WeightTensors, WeightTensors, WeightTensors]
"""Gate, up and down weights of the feed-forward that combines all shared experts."""

GEMV_BLOCK_OUTPUTS = 4
"""Outputs per program for one token; few, so that every multiprocessor has several programs."""
_GEMM_BLOCK_OUTPUTS = 32
_GEMM_ROWS = 16  # rows of a tile for several tokens: the size of a tensor core instruction
_PREFETCH_BYTES = 1024  # of each weight row, into L2, while a program waits for the preceding kernel


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
    (count, width), pairs = x_ND.shape, expert_ids_NK.numel()
    inner = gate_up.codes.shape[1] // 2
    num_shared = 0 if shared is None else len(shared[0]) // inner
    shared_gate, shared_up, shared_down = shared or (gate_up, gate_up, down)
    rows = 1 if count == 1 else _GEMM_ROWS
    tile = GEMV_BLOCK_OUTPUTS if rows == 1 else _GEMM_BLOCK_OUTPUTS
    blocks = pairs + num_shared * triton.cdiv(count, rows)
    total_pairs = pairs + num_shared * count
    hidden = x_ND.new_empty(total_pairs, inner)
    outputs = x_ND.new_empty(total_pairs, width, dtype=torch.float32)
    gate_up_kernel[(triton.cdiv(inner, tile), blocks)](
        x_ND,
        expert_ids_NK,
        *gate_up.kernel_arguments,
        *shared_gate.kernel_arguments,
        *shared_up.kernel_arguments,
        hidden,
        count,
        pairs,
        INNER=inner,
        K=expert_ids_NK.shape[1],
        **_linear_options(x_ND, gate_up, width, pairs, rows, tile),
        **pdl_options(x_ND),
    )
    down_kernel[(triton.cdiv(width, tile), blocks)](
        hidden,
        expert_ids_NK,
        *down.kernel_arguments,
        *shared_down.kernel_arguments,
        outputs,
        count,
        pairs,
        D=width,
        S=num_shared,
        **_linear_options(x_ND, down, inner, pairs, rows, tile),
        **pdl_options(x_ND),
    )
    return _weighted_sum(outputs, weights_NK, num_shared, torch.empty_like(x_ND))


def _weighted_sum(outputs: Tensor, weights_NK: Tensor, num_shared: int, out_ND: Tensor) -> Tensor:
    """Sum the outputs of each token's pairs and shared experts into `out_ND`."""
    (count, width), (_, top_k) = out_ND.shape, weights_NK.shape
    sum_kernel[(triton.cdiv(width, 256), count)](
        outputs,
        weights_NK,
        out_ND,
        count,
        weights_NK.numel(),
        width,
        K=top_k,
        S=num_shared,
        BLOCK_D=256,
        **pdl_options(out_ND),
    )
    return out_ND


def _linear_options(
    x_ND: Tensor, weight: WeightTensors, inputs: int, pairs: int, rows: int, tile: int
) -> dict[str, Any]:
    """Constants and launch options of a kernel that multiplies tiles of `rows` rows by a weight."""
    return {
        "COLUMNS": weight.codes.shape[-1],
        "KIND": weight.kind,
        "GROUP_C": weight.group_columns,
        "FLOAT32": dot_in_float32(x_ND.dtype),
        "R": rows,
        "BLOCK_P": triton.next_power_of_2(pairs),
        "BLOCK_O": tile,
        **_loop_options(inputs, weight.kind, tensor_cores=rows > 1),
        **prefetch_options(weight.codes, _PREFETCH_BYTES),
        "num_warps": 4,
        "num_stages": 2 if x_ND.dtype == torch.float32 else 3,
    }


def _loop_options(inputs: int, kind: str, tensor_cores: bool) -> dict[str, int]:
    """How a kernel loops over the inputs: `BLOCK_C` columns at a time, `UNROLL` times per iteration, to keep
    many loads in flight (with tensor cores, Triton's pipelining does that)."""
    columns = inputs // 2 if kind == "int4" else inputs
    block = gcd(columns, 128 if tensor_cores else 256)
    if block < (64 if tensor_cores else 128):
        block = min(max(triton.next_power_of_2(columns), 32), 128)
    if tensor_cores:
        return {"BLOCK_C": block, "UNROLL": 1}
    blocks = -(-columns // block)
    limit = min(blocks, 1536 // block)
    even = max(times for times in range(1, limit + 1) if blocks % times == 0)
    return {"BLOCK_C": block, "UNROLL": even if 2 * even > limit else limit}


def can_fuse_shared(shared: SharedExperts, gate_up: WeightTensors, down: WeightTensors) -> bool:
    """Whether the shared feed-forward can be split into experts like the routed ones and computed with
    them."""
    pairs = zip(shared, (gate_up, gate_up, down), strict=True)
    return all(
        (a.kind, a.group_columns, a.codes.dtype) == (b.kind, b.group_columns, b.codes.dtype) for a, b in pairs
    )
