"""Implementations of routed experts in PyTorch: three interchangeable ones, one for training, and two for
quantized weights.

N tokens, D model width, E experts, I width of an expert, K experts per token, P = N * K token-expert pairs,
C tokens of a block.

`loop_experts` is the definition: each expert computes the tokens routed to it. `grouped_gemm` is one product
over ragged groups, for devices that have one. `padded_bmm` pads each expert's tokens to whole blocks for
batched products, and never reads token counts from the device. `pick_implementation` chooses among them.
`dense_experts` is for training small models in captured steps: every expert computes every token, in fixed
shapes. Quantized experts use `loop_active_experts`, which multiplies by the selected experts only, or
`padded_bmm`, which dequantizes them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch_invariant import ROW_MULTIPLE, is_batch_invariant, linear, missing_rows
from .codec import WeightTensors, decode
from .quantized_linear import quantized_linear

ExpertsImplementation = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x `[N, D]`, gate_up `[E, 2I, D]`, down `[E, D, I]`, expert ids int64 `[N, K]`) -> outputs `[N, K, D]`."""

_grouped_mm = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
_GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ALIGNMENT = 16  # bytes, of every stride for the grouped product
_UNBLOCKED_PAIRS = 64  # up to here each pair has its own copy of its expert's weights
_BLOCK = 32  # tokens that share a copy beyond that
_BLOCKS_AT_ONCE = 64  # bounds the number of copies at a time


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def loop_experts(x_ND: Tensor, gate_up: Tensor, down: Tensor, expert_ids_NK: Tensor) -> Tensor:
    """The definition: expert after expert, on the tokens routed to it."""
    ids_P = expert_ids_NK.flatten()
    pairs_PD = x_ND.repeat_interleave(expert_ids_NK.shape[1], dim=0)
    out_PD = torch.zeros_like(pairs_PD)
    for expert in range(len(gate_up)):
        rows = (ids_P == expert).nonzero()[:, 0]
        hidden = _swiglu(linear(pairs_PD[rows], gate_up[expert]))
        out_PD = out_PD.index_copy(0, rows, linear(hidden, down[expert]))
    return out_PD.view(*expert_ids_NK.shape, -1)


def loop_active_experts(
    x_ND: Tensor, gate_up: WeightTensors, down: WeightTensors, expert_ids_NK: Tensor
) -> Tensor:
    """`loop_experts` over quantized weights and the selected experts only. For the CPU, as it reads the
    experts' ids on the host."""
    ids_P = expert_ids_NK.flatten()
    pairs_PD = x_ND.repeat_interleave(expert_ids_NK.shape[1], dim=0)
    out_PD = torch.zeros_like(pairs_PD)
    for expert in ids_P.unique().tolist():
        rows = (ids_P == expert).nonzero()[:, 0]
        hidden = _swiglu(quantized_linear(pairs_PD[rows], gate_up[expert]))
        out_PD = out_PD.index_copy(0, rows, quantized_linear(hidden, down[expert]))
    return out_PD.view(*expert_ids_NK.shape, -1)


def sort_by_expert(expert_ids_NK: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs sorted by expert: (their order `[P]`, the expert of each `[P]`, the count per expert `[E]`)."""
    # A radix sort makes one pass per byte.
    narrow = torch.int16 if experts <= torch.iinfo(torch.int16).max else expert_ids_NK.dtype
    sorted_P, order_P = expert_ids_NK.flatten().to(narrow).sort(stable=True)
    sorted_P = sorted_P.long()
    counts_E = torch.zeros(experts, dtype=torch.long, device=order_P.device)
    return order_P, sorted_P, counts_E.scatter_add_(0, sorted_P, torch.ones_like(sorted_P))


def _pad_to_blocks(expert_P: Tensor, counts_E: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The slot of each pair `[P]`, and the number of blocks per expert `[E]`, for pairs sorted by expert and
    experts that each start a new block of `size` slots."""
    blocks_E = (counts_E + size - 1) // size
    shift_E = (blocks_E.cumsum(0) - blocks_E) * size - (counts_E.cumsum(0) - counts_E)
    return torch.arange(len(expert_P), device=expert_P.device) + shift_E[expert_P], blocks_E


def _unsort(out_PD: Tensor, order_P: Tensor, expert_ids_NK: Tensor) -> Tensor:
    return torch.empty_like(out_PD).index_copy(0, order_P, out_PD).view(*expert_ids_NK.shape, -1)


def grouped_gemm(x_ND: Tensor, gate_up: Tensor, down: Tensor, expert_ids_NK: Tensor) -> Tensor:
    """One grouped product for all gates and ups, and one for all downs."""
    assert _grouped_mm is not None, "this torch has no grouped product"
    order_P, expert_P, counts_E = sort_by_expert(expert_ids_NK, len(gate_up))
    pairs_PD = x_ND[order_P // expert_ids_NK.shape[1]]
    slots_P = None
    if is_batch_invariant(x_ND):  # pad groups, so that a token's result does not depend on their sizes
        size = ROW_MULTIPLE + missing_rows(ROW_MULTIPLE, max(x_ND.shape[1], down.shape[2]))
        slots_P, blocks_E = _pad_to_blocks(expert_P, counts_E, size)
        padded = x_ND.new_zeros(len(pairs_PD) + (size - 1) * len(gate_up), x_ND.shape[1])
        pairs_PD, counts_E = padded.index_copy(0, slots_P, pairs_PD), blocks_E * size
    ends_E = counts_E.cumsum(0).to(torch.int32)
    hidden = _swiglu(_grouped_mm(pairs_PD, gate_up.transpose(1, 2), offs=ends_E))
    out_PD = _grouped_mm(hidden, down.transpose(1, 2), offs=ends_E)
    return _unsort(out_PD if slots_P is None else out_PD[slots_P], order_P, expert_ids_NK)


def _gather(weights: Tensor | WeightTensors, expert_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights of these experts; quantized ones are dequantized to `dtype`."""
    return weights[expert_ids] if isinstance(weights, Tensor) else decode(weights[expert_ids], dtype)


def padded_bmm(
    x_ND: Tensor, gate_up: Tensor | WeightTensors, down: Tensor | WeightTensors, expert_ids_NK: Tensor
) -> Tensor:
    """A batched product over blocks of C pairs of one expert each; pairs are sorted by expert and padded.

    The number of blocks is an upper bound from the shapes alone, so that nothing synchronizes.
    """
    experts, pairs = len(gate_up), expert_ids_NK.numel()
    size = 1 if pairs <= _UNBLOCKED_PAIRS else _BLOCK
    blocks = min(pairs, -(-pairs // size) + experts)
    order_P, expert_P, counts_E = sort_by_expert(expert_ids_NK, experts)
    slots_P, blocks_E = _pad_to_blocks(expert_P, counts_E, size)
    rows = x_ND.new_zeros(blocks * size, x_ND.shape[1])
    rows = rows.index_copy(0, slots_P, x_ND[order_P // expert_ids_NK.shape[1]]).view(blocks, size, -1)
    block_numbers = torch.arange(blocks, device=x_ND.device)
    expert_of_block = torch.searchsorted(blocks_E.cumsum(0), block_numbers, right=True).clamp(max=experts - 1)
    outputs = []
    for start in range(0, blocks, _BLOCKS_AT_ONCE):
        part = slice(start, start + _BLOCKS_AT_ONCE)
        ids = expert_of_block[part]
        hidden = _swiglu(torch.bmm(rows[part], _gather(gate_up, ids, x_ND.dtype).transpose(1, 2)))
        outputs.append(torch.bmm(hidden, _gather(down, ids, x_ND.dtype).transpose(1, 2)))
    return _unsort(torch.cat(outputs).flatten(0, 1)[slots_P], order_P, expert_ids_NK)


def dense_experts(
    x_ND: Tensor, gate_up: Tensor, down: Tensor, expert_ids_NK: Tensor, weights_NK: Tensor
) -> Tensor:
    """The weighted sum of the selected experts' outputs, `[N, D]`: every expert computes every token, E / K
    times the work, in two products, without sorting. Weights, 0 where an expert isn't selected, are applied
    before the second product, which then sums over the experts."""
    weights_NE = torch.zeros(len(x_ND), len(gate_up), dtype=weights_NK.dtype, device=x_ND.device)
    weights_NE = weights_NE.scatter_add(1, expert_ids_NK, weights_NK)
    hidden_NEI = _swiglu(F.linear(x_ND, gate_up.flatten(0, 1)).unflatten(1, (len(gate_up), -1)))
    weighted_NEI = (hidden_NEI * weights_NE[..., None]).to(x_ND.dtype)
    return F.linear(weighted_NEI.flatten(1), down.transpose(0, 1).flatten(1))


def pick_implementation(x_ND: Tensor, gate_up: Tensor, pairs: int) -> ExpertsImplementation:
    """The fastest implementation for the device and the dtype.

    The grouped product supports three dtypes, but on CUDA all except bfloat16 synchronize to read the group
    sizes; they use it there for long inputs only, and never while a graph is captured.
    """
    width, hidden, bytes_each = x_ND.shape[1], gate_up.shape[1] // 2, x_ND.dtype.itemsize
    aligned = width * bytes_each % _ALIGNMENT == 0 and hidden * bytes_each % _ALIGNMENT == 0
    if _grouped_mm is not None and aligned and x_ND.dtype in _GROUPED_DTYPES:
        if x_ND.device.type == "cpu":
            return grouped_gemm
        if x_ND.device.type == "cuda":
            may_wait = pairs > _UNBLOCKED_PAIRS and not torch.cuda.is_current_stream_capturing()
            return grouped_gemm if x_ND.dtype == torch.bfloat16 or may_wait else padded_bmm
    return loop_experts if x_ND.device.type == "cpu" else padded_bmm
