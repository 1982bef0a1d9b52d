"""One token of every request of an engine: heads, guidance and draws, of requests that are alike together.

R rows of the cache, m requests of one head, D decoder width, V a head's vocabulary.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..model.kv_slots import sent, take
from .decode_step import Kernels
from .request import Request, SampledToken
from .sampling import TokenHead
from .sampling_params import Sampling, guide, narrow, sample


def choose_all(
    groups: Mapping[TokenHead, list[Request]], hidden_RD: Tensor, kernels: Kernels | None = None
) -> list[tuple[Request, SampledToken]]:
    """One token of every request, from the hidden states of the rows. The device is waited for once, and
    again where log-probabilities are asked for."""
    logits = [_logits(head, requests, hidden_RD) for head, requests in groups.items()]
    drawn = [
        _draw(of_head, requests, kernels) for of_head, requests in zip(logits, groups.values(), strict=True)
    ]
    numbers = iter(torch.cat(drawn).tolist())
    chosen = []
    for of_head, requests in zip(logits, groups.values(), strict=True):
        tokens = [next(numbers) for _ in requests]
        asked = [i for i, request in enumerate(requests) if request.logprobs is not None]
        told = dict(zip(asked, _logprobs(of_head, requests, asked, tokens), strict=True))
        chosen += [(request, told.get(i) or SampledToken(tokens[i])) for i, request in enumerate(requests)]
    return chosen


def _logits(head: TokenHead, requests: Sequence[Request], hidden_RD: Tensor) -> Tensor:
    """Logits after guidance, float32 `[m, V]`: of all the requests' rows in one product."""
    guided = [i for i, request in enumerate(requests) if request.rows == 2]
    places = [request.places[0] for request in requests] + [requests[i].places[1] for i in guided]
    logits = head.logits(take(hidden_RD, places)).float()
    cond, uncond = logits[: len(requests)], logits[len(requests) :]
    if not guided:
        return cond
    scales = torch.tensor([[requests[i].guidance_scale] for i in guided])
    mixed = guide(take(cond, guided), uncond, scales.to(logits.device, non_blocking=True))
    if len(guided) == len(requests):
        return mixed
    return cond.index_copy(0, sent(logits.device, guided)[0], mixed)


def _draw(logits_mV: Tensor, requests: Sequence[Request], kernels: Kernels | None) -> Tensor:
    """Tokens int64 `[m]`; requests of equal options are drawn together."""
    groups: dict[Sampling, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(request.sampling, []).append(i)
    parts, order = [], []
    for sampling, members in groups.items():
        seeds, steps = [requests[i].seed for i in members], [requests[i].step for i in members]
        seeds_m, steps_m = sent(logits_mV.device, seeds, steps)
        parts.append(_draw_alike(take(logits_mV, members), sampling, seeds_m, steps_m, kernels))
        order += members
    if len(parts) == 1:
        return parts[0]
    tokens_m = torch.cat(parts)
    return torch.empty_like(tokens_m).index_copy_(0, sent(logits_mV.device, order)[0], tokens_m)


def _draw_alike(
    logits_mV: Tensor, sampling: Sampling, seeds_m: Tensor, steps_m: Tensor, kernels: Kernels | None
) -> Tensor:
    """`sample`; by a kernel where there are some, as in a captured step."""
    if kernels is None or sampling.temperature == 0.0:
        return sample(logits_mV, sampling, seeds_m, steps_m)
    temperature, tokens_m = sampling.temperature, torch.empty_like(seeds_m)
    if sampling.top_k or sampling.top_p < 1.0:
        logits_mV, temperature = narrow(logits_mV, temperature, sampling.top_k, sampling.top_p), 1.0
    number = logits_mV.new_full((1,), temperature)
    kernels.draw.draw(logits_mV, seeds_m, steps_m, tokens_m, None, guidance=None, temperature=number)
    return tokens_m


def _logprobs(
    logits_mV: Tensor, requests: Sequence[Request], asked: list[int], tokens: list[int]
) -> list[SampledToken]:
    """What is told of the requests that ask."""
    if not asked:
        return []
    scores = take(logits_mV, asked).log_softmax(-1)
    own = scores.gather(1, sent(scores.device, [tokens[i] for i in asked])[0][:, None])
    top = scores.topk(max(requests[i].logprobs or 0 for i in asked))
    values, places = torch.cat((own, top.values), dim=1).tolist(), top.indices.tolist()
    found = []
    for i, (logprob, *others), best in zip(asked, values, places, strict=True):
        pairs = zip(best, others, strict=True)
        found.append(SampledToken(tokens[i], logprob, tuple(pairs)[: requests[i].logprobs or 0]))
    return found
