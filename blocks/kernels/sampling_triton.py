"""Guidance, noise and choice of a token in two launches: `sampling.guide` and `sampling.sample` as kernels.

N draws, V vocabulary, P parts of a row of logits. The noise is that of random.py, bit for bit up to its
logarithms, which round within a unit in the last place or two.
"""

# What Triton's compiler reads is not what a checker of types takes it for.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pdl import pdl_options, wait_then_trigger

_BLOCK = 1024


@triton.jit
def _log1p(x):
    """`log(1 + x)`, precise for small x too: the rounding of `1 + x` is made up for."""
    near = 1.0 + x
    exact = near == 1.0
    fixed = tl.log(near) * tl.div_rn(x, tl.where(exact, 1.0, near - 1.0))
    return tl.where(exact, x, fixed)


@triton.jit
def _exponential(seed, step, v):
    """`exponential_noise` of entries `v`, four to a block of the generator; steps below 2**31."""
    zero = v * 0
    w0, w1, w2, w3 = tl.philox(seed, v // 4, zero + step.to(tl.int32), zero, zero)
    lane = v % 4
    bits = tl.where(lane == 0, w0, tl.where(lane == 1, w1, tl.where(lane == 2, w2, w3)))
    uniform = (bits.to(tl.float32) + 0.5) * (1.0 / 4294967296.0)
    return -_log1p(-tl.minimum(uniform, 1.0 - 1.0 / 16777216.0))


@triton.jit
def _draw_parts(
    logits,
    seeds,
    steps,
    guidance,
    temperature,
    best,
    places,
    V: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    GUIDED: tl.constexpr,
    GREEDY: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_then_trigger(PDL)
    n = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    v = part * BLOCK + tl.arange(0, BLOCK)
    inside = v < V
    if GUIDED:
        cond = tl.load(logits + 2 * n * V + v, mask=inside, other=0.0).to(tl.float32)
        uncond = tl.load(logits + (2 * n + 1) * V + v, mask=inside, other=0.0).to(tl.float32)
        score = uncond + tl.load(guidance) * (cond - uncond)
    else:
        score = tl.load(logits + n * V + v, mask=inside, other=0.0).to(tl.float32)
    if not GREEDY:
        noise = _exponential(tl.load(seeds + n), tl.load(steps + n), v)
        score = tl.div_rn(score, tl.zeros([BLOCK], tl.float32) + tl.load(temperature)) - tl.log(noise)
    score = tl.where(inside, score, float("-inf"))
    value, place = tl.max(score, axis=0, return_indices=True)
    tl.store(best + n * PARTS + part, value)
    tl.store(places + n * PARTS + part, part * BLOCK + place)


@triton.jit
def _draw_whole(
    best,
    places,
    tokens,
    steps,
    record,
    COUNT: tl.constexpr,
    PARTS: tl.constexpr,
    PADDED: tl.constexpr,
    RECORDED: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_then_trigger(PDL)
    n = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PADDED)
    value = tl.load(best + n * PARTS + part, mask=part < PARTS, other=float("-inf"))
    token = tl.load(places + n * PARTS + tl.argmax(value, axis=0)).to(tl.int64)
    step = tl.load(steps + n)
    tl.store(tokens + n, token)
    if RECORDED:
        tl.store(record + step * COUNT + n, token)
    tl.store(steps + n, step + 1)


def draw(
    logits_RV: Tensor,
    seeds_N: Tensor,
    steps_N: Tensor,
    tokens_N: Tensor,
    record_SN: Tensor | None,
    *,
    guidance: Tensor | None,
    temperature: Tensor | None,
) -> None:
    """Choose one token of every draw into `tokens` and row `steps` of `record` (if there is one); then steps
    are one further.

    With `guidance`, a number on the device, rows 2 n and 2 n + 1 of the logits are those of draw n with and
    without its condition. `temperature`, likewise a number on the device, is None for the likeliest token.
    """
    count, size = len(tokens_N), logits_RV.shape[1]
    logits_RV = logits_RV.contiguous()
    parts = triton.cdiv(size, _BLOCK)
    best = torch.empty(count, parts, dtype=torch.float32, device=logits_RV.device)
    places = torch.empty(count, parts, dtype=torch.int32, device=logits_RV.device)
    # Without contraction of products and sums, which would round guided logits otherwise than torch does.
    _draw_parts[count, parts](
        logits_RV,
        seeds_N,
        steps_N,
        best if guidance is None else guidance,
        best if temperature is None else temperature,
        best,
        places,
        V=size,
        PARTS=parts,
        BLOCK=_BLOCK,
        GUIDED=guidance is not None,
        GREEDY=temperature is None,
        enable_fp_fusion=False,
        **pdl_options(logits_RV),
    )
    _draw_whole[(count,)](
        best,
        places,
        tokens_N,
        steps_N,
        tokens_N if record_SN is None else record_SN,
        COUNT=1 if record_SN is None else record_SN.shape[1],
        PARTS=parts,
        PADDED=triton.next_power_of_2(parts),
        RECORDED=record_SN is not None,
        **pdl_options(logits_RV),
    )
