"""The gate of a mixture of experts for few tokens on CUDA, in two Triton kernels, float32 throughout.

N tokens, D model width, E experts, K experts a token.
"""

# What Triton compiles is not what its Python types say:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportCallIssue=false

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pdl import launching, let_in

if TYPE_CHECKING:
    from ..model.moe import Gate

_TILE = 2
_COLUMNS = 4096  # that a program loads while it waits for the kernel before it


@triton.jit
def _scores_kernel(
    x_ptr,
    weight_ptr,
    logits_ptr,
    E,
    D: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Logits of a tile of experts for one token, in float32."""
    token, first = tl.program_id(1), tl.program_id(0) * BLOCK_O
    experts = first + tl.arange(0, BLOCK_O)
    # Every expert loads the inputs for itself: from the nearest cache, but in its own layout.
    columns = tl.zeros([BLOCK_O, 1], dtype=tl.int32) + tl.arange(0, BLOCK_D)[None, :]
    rows = weight_ptr + tl.minimum(experts, E - 1)[:, None] * D
    weight = tl.load(rows + columns, mask=columns < D, other=0.0)
    let_in(EARLY)
    x = x_ptr + token * D
    sums = weight.to(tl.float32) * tl.load(x + columns, mask=columns < D, other=0.0).to(tl.float32)
    for start in range(BLOCK_D, D, BLOCK_D):
        at = start + columns
        weight = tl.load(rows + at, mask=at < D, other=0.0)
        sums += weight.to(tl.float32) * tl.load(x + at, mask=at < D, other=0.0).to(tl.float32)
    tl.store(logits_ptr + token * E + experts, tl.sum(sums, axis=1), mask=experts < E)


@triton.jit
def _choice_kernel(
    logits_ptr,
    bias_ptr,
    chosen_ptr,
    weights_ptr,
    E,
    scale,
    K: tl.constexpr,
    SOFTMAX: tl.constexpr,
    BIASED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The K best experts of one token and their weights; of equal ones the first."""
    token, experts, places = tl.program_id(0), tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    there = experts < E
    let_in(EARLY)
    logits = tl.load(logits_ptr + token * E + experts, mask=there, other=-float("inf"))
    if SOFTMAX:
        scores = tl.exp(logits - tl.max(logits, axis=0))
        scores = scores / tl.sum(scores, axis=0)
    else:
        scores = 1.0 / (1.0 + tl.exp(-logits))
    ranks = scores
    if BIASED:
        ranks += tl.load(bias_ptr + experts, mask=there, other=0.0).to(tl.float32)
    ranks = tl.where(there, ranks, -float("inf"))
    chosen, weights = tl.zeros([BLOCK_K], dtype=tl.int32), tl.zeros([BLOCK_K], dtype=tl.float32)
    for place in tl.static_range(K):
        best = tl.minimum(tl.argmax(ranks, axis=0), E - 1)  # NaN must not lead out of the tables
        chosen = tl.where(places == place, best, chosen)
        weights = tl.where(places == place, tl.sum(tl.where(experts == best, scores, 0.0), axis=0), weights)
        ranks = tl.where(experts == best, -float("inf"), ranks)
    if NORMALIZE:
        weights = weights / (tl.sum(weights, axis=0) + 1e-20)
    tl.store(chosen_ptr + token * K + places, chosen.to(tl.int64), mask=places < K)
    tl.store(weights_ptr + token * K + places, weights * scale, mask=places < K)


def choose(gate: "Gate", x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """`Gate.forward` without groups of experts: experts int64 and weights float32 `[N, K]`."""
    config, (count, width) = gate.config, x_ND.shape
    experts = config.num_experts
    logits_NE = x_ND.new_empty(count, experts, dtype=torch.float32)
    early = launching(x_ND)
    _scores_kernel[(triton.cdiv(experts, _TILE), count)](
        x_ND,
        gate.weight,
        logits_NE,
        experts,
        width,
        BLOCK_O=_TILE,
        BLOCK_D=min(triton.next_power_of_2(width), _COLUMNS),
        **early,
    )
    chosen_NK = x_ND.new_empty(count, config.top_k, dtype=torch.int64)
    weights_NK = x_ND.new_empty(count, config.top_k, dtype=torch.float32)
    biased = config.method == "noaux_tc"
    _choice_kernel[(count,)](
        logits_NE,
        gate.e_score_correction_bias if biased else logits_NE,
        chosen_NK,
        weights_NK,
        experts,
        config.scale,
        K=config.top_k,
        SOFTMAX=config.scoring == "softmax",
        BIASED=biased,
        NORMALIZE=config.normalize and config.top_k > 1,
        BLOCK_E=triton.next_power_of_2(experts),
        BLOCK_K=triton.next_power_of_2(config.top_k),
        num_warps=1,
        **early,
    )
    return chosen_NK, weights_NK
