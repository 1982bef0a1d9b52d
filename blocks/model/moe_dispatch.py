"""Four ways to send tokens through their experts, with one signature and the same numbers.

N tokens, D model width, E experts, I width of an expert, K experts a token, P = N * K pairs of a token
and an expert, C tokens of a block.

`looped` is the definition: each expert computes the tokens that chose it. `grouped` is one product over
ragged groups, for devices that have one; `blocked` is made of ordinary batched products and never asks
the device how many tokens an expert got. `pick_form` says which one serves where. `dense` is for training
small models in captured steps: every expert computes every token, in shapes that never change.
Quantized stacks go through `chosen_only`, which decodes the chosen experts alone, or through `blocked`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.batch_invariant import ROWS, exact, linear
from .quantized_linear import Stack

Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x `[N, D]`, gate_up `[E, 2I, D]`, down `[E, D, I]`, chosen int64 `[N, K]`) -> outputs `[N, K, D]`."""

_grouped_mm = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
_GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ALIGNMENT = 16  # bytes: what the grouped product asks of every stride
_FEW_PAIRS = 64  # up to here each pair gets its own copy of its expert's weights
_BLOCK = 32  # tokens that share such a copy beyond that
_BLOCKS_AT_ONCE = 64  # bounds the copies that exist at a time


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def looped(x_ND: Tensor, gate_up: Tensor, down: Tensor, chosen_NK: Tensor) -> Tensor:
    """The definition: expert after expert, on the tokens that chose it."""
    flat_P = chosen_NK.flatten()
    pairs_PD = x_ND.repeat_interleave(chosen_NK.shape[1], dim=0)
    out_PD = torch.zeros_like(pairs_PD)
    for expert in range(len(gate_up)):
        places = (flat_P == expert).nonzero()[:, 0]
        hidden = _swiglu(linear(pairs_PD[places], gate_up[expert]))
        out_PD = out_PD.index_copy(0, places, linear(hidden, down[expert]))
    return out_PD.view(*chosen_NK.shape, -1)


def _sorted_pairs(chosen_NK: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs ordered by expert: (order `[P]`, expert of each `[P]`, pairs of each expert `[E]`)."""
    # A radix sort makes a pass for every byte.
    narrow = torch.int16 if experts <= torch.iinfo(torch.int16).max else chosen_NK.dtype
    sorted_P, order_P = chosen_NK.flatten().to(narrow).sort(stable=True)
    sorted_P = sorted_P.long()
    counts_E = torch.zeros(experts, dtype=torch.long, device=order_P.device)
    return order_P, sorted_P, counts_E.scatter_add_(0, sorted_P, torch.ones_like(sorted_P))


def _places(expert_P: Tensor, counts_E: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where sorted pairs go if each expert's begin a block of `size`, `[P]`, and the blocks of each `[E]`."""
    blocks_E = (counts_E + size - 1) // size
    shift_E = (blocks_E.cumsum(0) - blocks_E) * size - (counts_E.cumsum(0) - counts_E)
    return torch.arange(len(expert_P), device=expert_P.device) + shift_E[expert_P], blocks_E


def _unsort(out_PD: Tensor, order_P: Tensor, chosen_NK: Tensor) -> Tensor:
    return torch.empty_like(out_PD).index_copy(0, order_P, out_PD).view(*chosen_NK.shape, -1)


def grouped(x_ND: Tensor, gate_up: Tensor, down: Tensor, chosen_NK: Tensor) -> Tensor:
    """One grouped product each for all gates and ups and for all downs."""
    return _unsort(*grouped_sorted(x_ND, gate_up, down, chosen_NK), chosen_NK)


def grouped_sorted(x_ND: Tensor, gate_up: Tensor, down: Tensor, chosen_NK: Tensor) -> tuple[Tensor, Tensor]:
    """`grouped` before the order is undone: outputs of pairs by expert, `[P, D]`, and their order `[P]`."""
    assert _grouped_mm is not None, "this torch has no grouped product"
    order_P, expert_P, counts_E = _sorted_pairs(chosen_NK, len(gate_up))
    pairs_PD = x_ND[order_P // chosen_NK.shape[1]]
    places_P = None
    if exact(x_ND):  # groups of whole fours, so that a token's result does not depend on its group's size
        places_P, groups_E = _places(expert_P, counts_E, ROWS)
        spread = x_ND.new_zeros(len(pairs_PD) + (ROWS - 1) * len(gate_up), x_ND.shape[1])
        pairs_PD, counts_E = spread.index_copy(0, places_P, pairs_PD), groups_E * ROWS
    ends_E = counts_E.cumsum(0).to(torch.int32)
    hidden = _swiglu(_grouped_mm(pairs_PD, gate_up.transpose(1, 2), offs=ends_E))
    out_PD = _grouped_mm(hidden, down.transpose(1, 2), offs=ends_E)
    return out_PD if places_P is None else out_PD[places_P], order_P


def chosen_only(x_ND: Tensor, gate_up: Stack, down: Stack, chosen_NK: Tensor) -> Tensor:
    """`looped` over quantized stacks and over the experts that were chosen: it asks which, so for the CPU."""
    flat_P = chosen_NK.flatten()
    pairs_PD = x_ND.repeat_interleave(chosen_NK.shape[1], dim=0)
    out_PD = torch.zeros_like(pairs_PD)
    for expert in flat_P.unique().tolist():
        places = (flat_P == expert).nonzero()[:, 0]
        hidden = _swiglu(gate_up.product(pairs_PD[places], expert))
        out_PD = out_PD.index_copy(0, places, down.product(hidden, expert))
    return out_PD.view(*chosen_NK.shape, -1)


def blocked(x_ND: Tensor, gate_up: Tensor | Stack, down: Tensor | Stack, chosen_NK: Tensor) -> Tensor:
    """Pairs sorted by expert into blocks of at most C of one expert; a batched product over the blocks.

    The number of blocks is a bound that follows from the shapes alone, so that nothing waits for the device.
    """
    experts, pairs = len(gate_up), chosen_NK.numel()
    size = 1 if pairs <= _FEW_PAIRS else _BLOCK
    blocks = min(pairs, -(-pairs // size) + experts)
    order_P, expert_P, counts_E = _sorted_pairs(chosen_NK, experts)
    slots_P, blocks_E = _places(expert_P, counts_E, size)
    rows = x_ND.new_zeros(blocks * size, x_ND.shape[1])
    rows = rows.index_copy(0, slots_P, x_ND[order_P // chosen_NK.shape[1]]).view(blocks, size, -1)
    numbers = torch.arange(blocks, device=x_ND.device)
    expert_of_block = torch.searchsorted(blocks_E.cumsum(0), numbers, right=True).clamp(max=experts - 1)
    outs = []
    for start in range(0, blocks, _BLOCKS_AT_ONCE):
        part = slice(start, start + _BLOCKS_AT_ONCE)
        chosen = expert_of_block[part]
        hidden = _swiglu(torch.bmm(rows[part], gate_up[chosen].transpose(1, 2)))
        outs.append(torch.bmm(hidden, down[chosen].transpose(1, 2)))
    return _unsort(torch.cat(outs).flatten(0, 1)[slots_P], order_P, chosen_NK)


def dense(x_ND: Tensor, gate_up: Tensor, down: Tensor, chosen_NK: Tensor) -> Tensor:
    """All outputs of all experts, of which the chosen ones are kept: E / K times the work, nothing sorted."""
    hidden_ENI = _swiglu(torch.matmul(x_ND, gate_up.transpose(1, 2)))
    out_NED = torch.matmul(hidden_ENI, down.transpose(1, 2)).transpose(0, 1)
    return out_NED.gather(1, chosen_NK[..., None].expand(-1, -1, x_ND.shape[1]))


def pick_form(x_ND: Tensor, gate_up: Tensor, pairs: int) -> Form:
    """The fastest form that the device and the dtype have.

    The grouped product takes three dtypes on the CPU and on CUDA, but on CUDA only bfloat16 without
    reading the group sizes back; others use it there for long inputs only, so that decoding never waits.
    """
    width, hidden, bytes_each = x_ND.shape[1], gate_up.shape[1] // 2, x_ND.dtype.itemsize
    aligned = width * bytes_each % _ALIGNMENT == 0 and hidden * bytes_each % _ALIGNMENT == 0
    if _grouped_mm is not None and aligned and x_ND.dtype in _GROUPED_DTYPES:
        if x_ND.device.type == "cpu":
            return grouped
        if x_ND.device.type == "cuda" and (x_ND.dtype == torch.bfloat16 or pairs > _FEW_PAIRS):
            return grouped
    return looped if x_ND.device.type == "cpu" else blocked
