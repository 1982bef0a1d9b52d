"""From logits to tokens: guidance, repetition penalty, temperature and filters, and the draw.

N sequences, R rows of the decoder (N, or 2 N with guidance: rows 2 n and 2 n + 1 are sequence n with and
without its condition), m requests of one token head, D decoder width, V vocabulary. A row's token depends on
its own logits, seed and step only. `sample` is the one path of the plain loop, captured steps and the
scheduler.
"""

import math
from collections.abc import Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..model.kv_slots import ints_on_device, select_rows
from .philox import exponential_noise
from .request import Request, SampledToken, SamplingMode, SamplingParams, SamplingTensors, TokenHead


def guide(cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance on logits: `u + scale * (c - u)`.

    Ho and Salimans 2022, eq. 6, with scale = 1 + w there; Janus (Wu et al. 2024) uses it with scale 5.
    """
    return uncond + scale * (cond - uncond)


def penalize(logits: Tensor, seen: Tensor, penalty: float | Tensor) -> Tensor:
    """Make tokens that were `seen` (a mask of the logits' shape) less likely: positive logits are divided by
    the penalty (Keskar et al. 2019, "CTRL", sec. 4.1), negative ones multiplied, as in transformers."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Set all but the `top_k` largest logits to -inf (ties with the last one stay); 0 keeps all."""
    if top_k == 0 or top_k >= logits.shape[-1]:
        return logits
    least = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -math.inf)


def keep_top_p(logits: Tensor, top_p: float | Tensor) -> Tensor:
    """Keep the smallest set of most likely tokens with total probability `top_p` or more (Holtzman et al.
    2020, sec. 3.1)."""
    if not isinstance(top_p, Tensor) and top_p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logits.masked_fill(drop, -math.inf)


def warp(logits: Tensor, temperature: float | Tensor, top_k: int, top_p: float | Tensor) -> Tensor:
    """Temperature, then `top_k`, then `top_p`: the order of transformers' logits warpers."""
    return keep_top_p(keep_top_k(logits / temperature, top_k), top_p)


def process_logits(
    logits_RV: Tensor, mode: SamplingMode, tensors: SamplingTensors, seen_NV: Tensor | None
) -> Tensor:
    """Logits float32 `[N, V]` after guidance, penalty, temperature and filters, in this order."""
    logits = logits_RV.float()
    if mode.guided:
        cond, uncond = logits.unflatten(0, (-1, 2)).unbind(1)
        logits = guide(cond, uncond, tensors.guidance)
    if seen_NV is not None:
        logits = penalize(logits, seen_NV, tensors.penalty)
    if mode.greedy:
        return logits
    return warp(logits, tensors.temperature, mode.top_k, tensors.top_p if mode.nucleus else 1.0)


def draw(logits_NV: Tensor, seeds_N: Tensor, steps_N: Tensor) -> Tensor:
    """Sample a token of each row by the exponential race `argmin(E_i / p_i)`, computed in logarithms."""
    noise = exponential_noise(seeds_N, steps_N, logits_NV.shape[-1])
    return (logits_NV - noise.log()).argmax(-1)


def sample(
    logits_RV: Tensor,
    mode: SamplingMode,
    tensors: SamplingTensors,
    seeds_N: Tensor,
    steps_N: Tensor,
    seen_NV: Tensor | None = None,
    *,
    kernel: ModuleType | None = None,
    tokens_N: Tensor | None = None,
    record_SN: Tensor | None = None,
) -> Tensor:
    """Sample one token of every sequence, int64 `[N]`, in float32 whatever the logits' dtype.

    The tokens are marked in `seen_NV`. Captured steps pass `tokens_N`, which receives the result, and
    `record_SN`, which receives it in row `steps_N`; `steps_N` is then incremented. `kernel`
    (`kernels.sampling_triton`) applies guidance and draws in two launches.
    """
    if kernel is None:
        logits_NV = process_logits(logits_RV, mode, tensors, seen_NV)
        sampled_N = logits_NV.argmax(-1) if mode.greedy else draw(logits_NV, seeds_N, steps_N)
        tokens_N = sampled_N if tokens_N is None else tokens_N.copy_(sampled_N)
        if record_SN is not None:
            record_SN.index_copy_(0, steps_N[:1], sampled_N[None])
            steps_N += 1
    else:
        guidance, temperature = (tensors.guidance if mode.guided else None), tensors.temperature
        if mode.processed:
            logits_RV = process_logits(logits_RV, mode, tensors, seen_NV)
            guidance, temperature = None, tensors.one
        tokens_N = torch.empty_like(seeds_N) if tokens_N is None else tokens_N
        kernel.draw(
            logits_RV,
            seeds_N,
            steps_N,
            tokens_N,
            record_SN,
            guidance=guidance,
            temperature=None if mode.greedy else _on_device(temperature, logits_RV),
        )
    if seen_NV is not None:
        seen_NV.scatter_(1, tokens_N[:, None], True)
    return tokens_N


def _on_device(number: float | Tensor, like: Tensor) -> Tensor:
    return number if isinstance(number, Tensor) else like.new_full((1,), number)


def expand_rows(x_ND: Tensor, mode: SamplingMode) -> Tensor:
    """Decoder inputs of all rows, `[R, D]`: both rows of a guided sequence get the same token."""
    return x_ND[:, None].expand(-1, 2, -1).flatten(0, 1) if mode.guided else x_ND


def interleave(cond: Sequence[Tensor], uncond: Sequence[Tensor] | None) -> list[Tensor]:
    """Conditional and unconditional rows in alternation; without `uncond`, the conditional ones alone."""
    if uncond is None:
        return list(cond)
    return [row for pair in zip(cond, uncond, strict=True) for row in pair]


def sample_requests(
    groups: Mapping[TokenHead, list[Request]], hidden_RD: Tensor, kernel: ModuleType | None = None
) -> list[tuple[Request, SampledToken]]:
    """Sample one token of every request from the hidden states of the cache's rows.

    `groups` are the requests by token head. Synchronizes with the device once, and again for requests that
    ask for log-probabilities.
    """
    logits = [_guided_logits(head, requests, hidden_RD) for head, requests in groups.items()]
    pairs = list(zip(logits, groups.values(), strict=True))
    numbers = iter(torch.cat([_sample_tokens(*pair, kernel) for pair in pairs]).tolist())
    sampled = []
    for logits_mV, requests in pairs:
        tokens = [next(numbers) for _ in requests]
        with_logprobs = _with_logprobs(logits_mV, requests, tokens)
        sampled += [(r, with_logprobs.get(i) or SampledToken(tokens[i])) for i, r in enumerate(requests)]
    return sampled


def _guided_logits(head: TokenHead, requests: Sequence[Request], hidden_RD: Tensor) -> Tensor:
    """Logits after guidance, float32 `[m, V]`; the head runs once for the rows of all requests."""
    guided = [i for i, request in enumerate(requests) if request.rows == 2]
    rows = [request.row_ids[0] for request in requests] + [requests[i].row_ids[1] for i in guided]
    logits = head.logits(select_rows(hidden_RD, rows)).float()
    cond, uncond = logits[: len(requests)], logits[len(requests) :]
    if not guided:
        return cond
    scales = torch.tensor([[requests[i].sampling.guidance_scale] for i in guided])
    mixed = guide(select_rows(cond, guided), uncond, scales.to(logits.device, non_blocking=True))
    if len(guided) == len(requests):
        return mixed
    return cond.index_copy(0, ints_on_device(logits.device, guided)[0], mixed)


def _sample_tokens(logits_mV: Tensor, requests: Sequence[Request], kernel: ModuleType | None) -> Tensor:
    """Tokens int64 `[m]`; requests with equal parameters are sampled together."""
    groups: dict[SamplingParams, list[int]] = {}
    for i, request in enumerate(requests):
        params = request.sampling
        groups.setdefault(SamplingParams(params.temperature, params.top_k, params.top_p), []).append(i)
    parts, order = [], []
    for params, members in groups.items():
        seeds, steps = [requests[i].seed for i in members], [requests[i].step for i in members]
        seeds_m, steps_m = ints_on_device(logits_mV.device, seeds, steps)
        logits, mode = select_rows(logits_mV, members), params.mode
        used_kernel = None if mode.greedy else kernel  # a plain argmax is one launch
        parts.append(sample(logits, mode, params.tensors, seeds_m, steps_m, kernel=used_kernel))
        order += members
    if len(parts) == 1:
        return parts[0]
    tokens_m = torch.cat(parts)
    return torch.empty_like(tokens_m).index_copy_(0, ints_on_device(logits_mV.device, order)[0], tokens_m)


def _with_logprobs(
    logits_mV: Tensor, requests: Sequence[Request], tokens: list[int]
) -> dict[int, SampledToken]:
    """The tokens of requests that ask for log-probabilities, by the request's index."""
    asking = [i for i, request in enumerate(requests) if request.logprobs is not None]
    if not asking:
        return {}
    scores = select_rows(logits_mV, asking).log_softmax(-1)
    own = scores.gather(1, ints_on_device(scores.device, [tokens[i] for i in asking])[0][:, None])
    top = scores.topk(max(requests[i].logprobs or 0 for i in asking))
    values, indices = torch.cat((own, top.values), dim=1).tolist(), top.indices.tolist()
    sampled = {}
    for i, (logprob, *others), best in zip(asking, values, indices, strict=True):
        alternatives = tuple(zip(best, others, strict=True))[: requests[i].logprobs or 0]
        sampled[i] = SampledToken(tokens[i], logprob, alternatives)
    return sampled
