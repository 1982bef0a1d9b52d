"""The router of a mixture of experts on CUDA: two Triton kernels, float32 throughout. A token has the same
bits whatever other tokens there are.

N tokens, D model width, E experts, K experts per token.
"""

# Triton kernels are not what their Python types say:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pdl import pdl_options, trigger_then_wait

BLOCK_EXPERTS = 2
"""Experts per program of the logits kernel."""
_TOKEN_BLOCKS = 64  # most programs for the tokens; more tokens share their program's weights
_BLOCK_COLUMNS = 4096  # weight columns that a program loads while it waits for the preceding kernel


@triton.jit(do_not_specialize=["N", "T"])
def _logits_kernel(
    x_ptr, weight_ptr, logits_ptr, N, T, E, D: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Logits of a tile of experts for T tokens, in float32. For any number of tokens it is the same program,
    with sums in the same order."""
    first_token, first = tl.program_id(1) * T, tl.program_id(0) * BLOCK_E
    experts = first + tl.arange(0, BLOCK_E)
    # Every expert loads the inputs itself: from L1, but in the layout of its own products.
    columns = tl.zeros([BLOCK_E, 1], dtype=tl.int32) + tl.arange(0, BLOCK_D)[None, :]
    rows = weight_ptr + tl.minimum(experts, E - 1)[:, None] * D
    weight = tl.load(rows + columns, mask=columns < D, other=0.0)
    trigger_then_wait(PDL)
    x = x_ptr + first_token.to(tl.int64) * D
    next_inputs = tl.load(x + columns, mask=columns < D, other=0.0)
    for token in range(first_token, tl.minimum(first_token + T, N)):
        inputs = next_inputs
        next_inputs = tl.load(x + D + columns, mask=columns < tl.where(token + 1 < N, D, 0), other=0.0)
        sums = weight.to(tl.float32) * inputs.to(tl.float32)
        for start in range(BLOCK_D, D, BLOCK_D):
            at = start + columns
            more = tl.load(rows + at, mask=at < D, other=0.0)
            sums += more.to(tl.float32) * tl.load(x + at, mask=at < D, other=0.0).to(tl.float32)
        tl.store(logits_ptr + token * E + experts, tl.sum(sums, axis=1), mask=experts < E)
        x += D


@triton.jit
def _in_best_groups(
    ranks, groups, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, BY_TWO: tl.constexpr, BLOCK_G: tl.constexpr
):  # fmt: skip
    """Whether each expert, of one of the `groups`, is in one of the best: by their best rank, or BY_TWO by
    the sum of their two best."""
    g = tl.arange(0, BLOCK_G)
    merits = tl.full([BLOCK_G], -float("inf"), tl.float32)
    for group in tl.static_range(GROUPS):
        own = tl.where(groups == group, ranks, -float("inf"))
        merit = tl.max(own, axis=0)
        if BY_TWO:
            others = tl.where(tl.arange(0, own.shape[0]) == tl.argmax(own, axis=0), -float("inf"), own)
            merit += tl.max(others, axis=0)
        merits = tl.where(g == group, merit, merits)
    chosen = groups < 0
    for _ in tl.static_range(TOP_GROUPS):
        best = tl.argmax(merits, axis=0)
        chosen = chosen | (groups == best)
        merits = tl.where(g == best, -float("inf"), merits)
    return chosen


@triton.jit
def _top_k_kernel(
    logits_ptr, bias_ptr, ids_ptr, weights_ptr, E, scale,
    K: tl.constexpr, SOFTMAX: tl.constexpr, BIASED: tl.constexpr, NORMALIZE: tl.constexpr,
    GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The K best experts of one token and their weights, of the TOP_GROUPS best of GROUPS; ties go to the
    first."""
    token, experts, k = tl.program_id(0), tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    inside = experts < E
    trigger_then_wait(PDL)
    logits = tl.load(logits_ptr + token * E + experts, mask=inside, other=-float("inf"))
    if SOFTMAX:
        scores = tl.exp(logits - tl.max(logits, axis=0))
        scores = scores / tl.sum(scores, axis=0)
    else:
        scores = 1.0 / (1.0 + tl.exp(-logits))
    ranks = scores
    if BIASED:
        ranks += tl.load(bias_ptr + experts, mask=inside, other=0.0).to(tl.float32)
    ranks = tl.where(inside, ranks, -float("inf"))
    if GROUPS > 1:
        chosen = _in_best_groups(ranks, experts // (E // GROUPS), GROUPS, TOP_GROUPS, BIASED, BLOCK_G)
        ranks = tl.where(chosen, ranks, -float("inf"))
    ids, weights = tl.zeros([BLOCK_K], dtype=tl.int32), tl.zeros([BLOCK_K], dtype=tl.float32)
    for place in tl.static_range(K):
        best = tl.minimum(tl.argmax(ranks, axis=0), E - 1)  # within bounds even for NaN
        ids = tl.where(k == place, best, ids)
        weights = tl.where(k == place, tl.sum(tl.where(experts == best, scores, 0.0), axis=0), weights)
        ranks = tl.where(experts == best, -float("inf"), ranks)
    if NORMALIZE:
        weights = weights / (tl.sum(weights, axis=0) + 1e-20)
    tl.store(ids_ptr + token * K + k, ids.to(tl.int64), mask=k < K)
    tl.store(weights_ptr + token * K + k, weights * scale, mask=k < K)


def router_logits(x_ND: Tensor, weight_ED: Tensor) -> Tensor:
    """The router's logits, float32 `[N, E]`."""
    (count, width), experts = x_ND.shape, len(weight_ED)
    logits_NE = x_ND.new_empty(count, experts, dtype=torch.float32)
    tokens = triton.cdiv(count, _TOKEN_BLOCKS)
    _logits_kernel[(triton.cdiv(experts, BLOCK_EXPERTS), triton.cdiv(count, tokens))](
        x_ND,
        weight_ED,
        logits_NE,
        count,
        tokens,
        experts,
        width,
        BLOCK_E=BLOCK_EXPERTS,
        BLOCK_D=min(triton.next_power_of_2(width), _BLOCK_COLUMNS),
        **pdl_options(x_ND),
    )
    return logits_NE


def select_experts(
    x_ND: Tensor,
    weight_ED: Tensor,
    bias_E: Tensor | None,
    *,
    top_k: int,
    softmax: bool,
    normalize: bool,
    scale: float,
    groups: tuple[int, int] = (1, 1),
) -> tuple[Tensor, Tensor]:
    """The experts of each token, int64 `[N, K]`, and their weights, float32 `[N, K]`.

    Scores are the softmax (or sigmoid) of the router's logits; `bias_E` is added for ranking only. Weights
    are divided by their sum if `normalize`, then multiplied by `scale`. With `groups`, their number and how
    many are taken, experts are of the groups with the best expert, or where there is a bias, with the best
    sum of two; these have at least K experts.
    """
    count, experts = len(x_ND), len(weight_ED)
    logits_NE = router_logits(x_ND, weight_ED)
    expert_ids_NK = x_ND.new_empty(count, top_k, dtype=torch.int64)
    weights_NK = x_ND.new_empty(count, top_k, dtype=torch.float32)
    _top_k_kernel[(count,)](
        logits_NE,
        logits_NE if bias_E is None else bias_E,
        expert_ids_NK,
        weights_NK,
        experts,
        scale,
        K=top_k,
        SOFTMAX=softmax,
        BIASED=bias_E is not None,
        NORMALIZE=normalize,
        GROUPS=groups[0],
        TOP_GROUPS=groups[1],
        BLOCK_G=triton.next_power_of_2(groups[0]),
        BLOCK_E=triton.next_power_of_2(experts),
        BLOCK_K=triton.next_power_of_2(top_k),
        num_warps=1,
        **pdl_options(x_ND),
    )
    return expert_ids_NK, weights_NK
