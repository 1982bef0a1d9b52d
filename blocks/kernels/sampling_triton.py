"""Guidance, noise and argmax in two launches: the engine's `guide` and `draw` as Triton kernels.

N draws, V vocabulary, P blocks of a row of logits. The noise has the random bits of philox.py; its
logarithms may differ by a unit or two in the last place.
"""

# Triton kernels are not what their Python types say:
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pdl import pdl_options, wait_then_trigger

_BLOCK = 1024


@triton.jit
def _log1p(x):
    """`log(1 + x)`, corrected for the rounding of `1 + x`, and so precise for small `x`."""
    rounded = 1.0 + x
    is_one = rounded == 1.0
    corrected = tl.log(rounded) * tl.div_rn(x, tl.where(is_one, 1.0, rounded - 1.0))
    return tl.where(is_one, x, corrected)


@triton.jit
def _exponential(seed, step, v):
    """`philox.exponential_noise` of the entries `v`, four per Philox counter; steps are below 2**31."""
    zero = v * 0
    w0, w1, w2, w3 = tl.philox(seed, v // 4, zero + step.to(tl.int32), zero, zero)
    lane = v % 4
    bits = tl.where(lane == 0, w0, tl.where(lane == 1, w1, tl.where(lane == 2, w2, w3)))
    uniform = (bits.to(tl.float32) + 0.5) * (1.0 / 4294967296.0)
    return -_log1p(-tl.minimum(uniform, 1.0 - 1.0 / 16777216.0))


@triton.jit
def _best_of_blocks(
    logits,
    seeds,
    steps,
    guidance,
    temperature,
    best_scores,
    best_tokens,
    V: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    GUIDED: tl.constexpr,
    GREEDY: tl.constexpr,
    SOME_DROPPED: tl.constexpr,
    PDL: tl.constexpr,
):
    """The best token of one block of the vocabulary for one draw, and its score, the guided logit with noise;
    -1, which counts as the best of all, if a logit is not finite, but for the -inf of dropped tokens."""
    wait_then_trigger(PDL)
    n = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    v = block * BLOCK + tl.arange(0, BLOCK)
    mask = v < V
    if GUIDED:
        cond = tl.load(logits + n * V + v, mask=mask, other=0.0).to(tl.float32)
        uncond = tl.load(logits + (tl.num_programs(0) + n) * V + v, mask=mask, other=0.0).to(tl.float32)
        score = uncond + tl.load(guidance + n) * (cond - uncond)
    else:
        score = tl.load(logits + n * V + v, mask=mask, other=0.0).to(tl.float32)
    if SOME_DROPPED:
        bad = score != score
    else:
        bad = (tl.abs(score) < float("inf")) == 0
    if not GREEDY:
        noise = _exponential(tl.load(seeds + n), tl.load(steps + n), v)
        score = tl.div_rn(score, tl.zeros([BLOCK], tl.float32) + tl.load(temperature + n)) - tl.log(noise)
    score = tl.where(mask, score, float("-inf"))
    best_score, best = tl.max(score, axis=0, return_indices=True)
    any_bad = tl.max(bad.to(tl.int32), axis=0) > 0
    tl.store(best_scores + n * BLOCKS + block, tl.where(any_bad, float("inf"), best_score))
    tl.store(best_tokens + n * BLOCKS + block, tl.where(any_bad, -1, block * BLOCK + best))


@triton.jit
def _best_of_row(
    best_scores, best_tokens, tokens, BLOCKS: tl.constexpr, PADDED: tl.constexpr, PDL: tl.constexpr
):
    """The best token of all blocks of a draw."""
    wait_then_trigger(PDL)
    n = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, PADDED)
    score = tl.load(best_scores + n * BLOCKS + block, mask=block < BLOCKS, other=float("-inf"))
    token = tl.load(best_tokens + n * BLOCKS + tl.argmax(score, axis=0))
    tl.store(tokens + n, token.to(tl.int64))


def draw(
    logits: Tensor,
    seeds_N: Tensor,
    steps_N: Tensor,
    guidance_N: Tensor | None,
    temperature_N: Tensor | None,
    some_dropped: bool = False,
) -> Tensor:
    """Sample one token per draw, int64 `[N]`.

    Logits are `[N, V]`, or with `guidance_N` `[2 N, V]`: the conditional rows of all draws, then the
    unconditional ones. Without `temperature_N` it is the most likely token. It is -1 if a logit is not
    finite; with `some_dropped`, -inf is a token that was dropped.
    """
    count, size = len(seeds_N), logits.shape[1]
    logits = logits.contiguous()
    blocks = triton.cdiv(size, _BLOCK)
    tokens_N = torch.empty(count, dtype=torch.int64, device=logits.device)
    best_scores_NP = torch.empty(count, blocks, dtype=torch.float32, device=logits.device)
    best_tokens_NP = torch.empty(count, blocks, dtype=torch.int32, device=logits.device)
    # Without fused multiply-adds, which would round guided logits differently from torch.
    _best_of_blocks[count, blocks](
        logits,
        seeds_N,
        steps_N,
        best_scores_NP if guidance_N is None else guidance_N,
        best_scores_NP if temperature_N is None else temperature_N,
        best_scores_NP,
        best_tokens_NP,
        V=size,
        BLOCKS=blocks,
        BLOCK=_BLOCK,
        GUIDED=guidance_N is not None,
        GREEDY=temperature_N is None,
        SOME_DROPPED=some_dropped,
        enable_fp_fusion=False,
        **pdl_options(logits),
    )
    _best_of_row[(count,)](
        best_scores_NP,
        best_tokens_NP,
        tokens_N,
        BLOCKS=blocks,
        PADDED=triton.next_power_of_2(blocks),
        **pdl_options(logits),
    )
    return tokens_N
