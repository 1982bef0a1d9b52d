"""A mixture of experts for few tokens on CUDA, by the kernels of `gate_kernels` and `experts_kernels`.

Five launches a layer. Nothing waits for the device, and shapes alone decide what is launched.

N tokens, D model width, E experts, I width of an expert, K experts a token, P = N * K pairs of a token and
an expert.
"""

# What Triton compiles is not what its Python types say:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportCallIssue=false

from typing import TYPE_CHECKING, cast

import torch
import triton
from torch import Tensor

from ..model.quantized_linear import QuantizedWeight
from .moe_decode_triton import hidden_kernel, outputs_kernel, sum_kernel
from .moe_router import choose
from .pdl import launching, lines
from .row_products import ROWS, Operand, as_operand, exact_products, loop_sizes

if TYPE_CHECKING:
    from ..model.feed_forward import FeedForward
    from ..model.moe import MoE

Shared = tuple[Operand, Operand, Operand]
"""The weights of shared experts: gates, ups and downs."""

_TILE = 4  # outputs of a block for one token: small, so that every multiprocessor has several
_TILE_MANY = 32
_AHEAD = 1024
"""Bytes of each weight row that a block asks for while it waits for the kernel before it."""


def mixture(layer: "MoE", x_ND: Tensor) -> Tensor:
    """`MoE.forward` of few tokens, `[N, D]`."""
    x_ND = x_ND.contiguous()
    config, experts = layer.gate.config, layer.experts
    chosen = choose(layer.gate, x_ND) if config.num_groups == 1 else layer.gate(x_ND)
    gate_up, down = as_operand(experts.gate_up), as_operand(experts.down)
    if layer.shared_experts is None:
        return weighted(x_ND, gate_up, down, *chosen)
    shared = _weights(layer.shared_experts)
    if joins(shared, gate_up, down):
        return weighted(x_ND, gate_up, down, *chosen, shared)
    return weighted(x_ND, gate_up, down, *chosen) + layer.shared_experts(x_ND)


def _weights(shared: "FeedForward") -> Shared:
    gate, up, down = (
        as_operand(part if isinstance(part, QuantizedWeight) else part.weight)
        for part in cast(list, [shared.gate_proj, shared.up_proj, shared.down_proj])
    )
    return gate, up, down


def weighted(
    x_ND: Tensor,
    gate_up: Operand,
    down: Operand,
    chosen_NK: Tensor,
    weights_NK: Tensor,
    shared: Shared | None = None,
) -> Tensor:
    """The weighted sum of the chosen experts' outputs, and the `shared` feed-forward's (gate, up, down) if
    it can be cut into experts of the same width (see `joins`); `[N, D]` in the dtype of `x`."""
    (count, width), pairs = x_ND.shape, chosen_NK.numel()
    inner = gate_up.numbers.shape[1] // 2
    shares = 0 if shared is None else shared[0].numbers.shape[0] // inner
    shared_gate, shared_up, shared_down = shared or (gate_up, gate_up, down)
    rows = 1 if count == 1 else ROWS
    tile = _TILE if rows == 1 else _TILE_MANY
    blocks = pairs + shares * triton.cdiv(count, rows)
    table = pairs + shares * count
    hidden = x_ND.new_empty(table, inner)
    outputs = x_ND.new_empty(table, width, dtype=torch.float32)
    same = {
        "EXACT": exact_products(x_ND.dtype),
        "R": rows,
        "BLOCK_P": triton.next_power_of_2(pairs),
        "BLOCK_O": tile,
        "num_warps": 4,
        "num_stages": 2 if x_ND.dtype == torch.float32 else 3,
        **launching(x_ND),
    }
    hidden_kernel[(triton.cdiv(inner, tile), blocks)](
        x_ND,
        chosen_NK,
        *gate_up.tensors,
        *shared_gate.tensors,
        *shared_up.tensors,
        hidden,
        count,
        pairs,
        INNER=inner,
        K=chosen_NK.shape[1],
        **_kind(gate_up),
        **loop_sizes(width, gate_up.kind, rows > 1),
        **lines(gate_up.numbers, _AHEAD),
        **same,
    )
    outputs_kernel[(triton.cdiv(width, tile), blocks)](
        hidden,
        chosen_NK,
        *down.tensors,
        *shared_down.tensors,
        outputs,
        count,
        pairs,
        D=width,
        S=shares,
        **_kind(down),
        **loop_sizes(inner, down.kind, rows > 1),
        **lines(down.numbers, _AHEAD),
        **same,
    )
    out_ND = torch.empty_like(x_ND)
    sum_kernel[(triton.cdiv(width, 256), count)](
        outputs,
        weights_NK,
        out_ND,
        count,
        pairs,
        width,
        K=chosen_NK.shape[1],
        S=shares,
        BLOCK_D=256,
        **launching(x_ND),
    )
    return out_ND


def _kind(weight: Operand) -> dict[str, int | str]:
    return {"COLUMNS": weight.numbers.shape[-1], "KIND": weight.kind, "HALF": weight.half}


def joins(shared: Shared, gate_up: Operand, down: Operand) -> bool:
    """Whether a shared feed-forward can be cut into experts like the others."""
    alike = zip(shared, (gate_up, gate_up, down), strict=True)
    return all((a.kind, a.half, a.numbers.dtype) == (b.kind, b.half, b.numbers.dtype) for a, b in alike)
