"""From logits to tokens: guidance, repetition penalty, temperature and filters, and the draw.

N requests of one token head and mode, V vocabulary. A request's token depends on its own logits, seed and
step only. Eager and captured steps share `sample`.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..device import upload
from ..kernels.philox import exponential_noise
from ..token_masks import apply_masks
from .request import MAX_LOGPROBS, Request, SampledToken, SamplingMode, SamplingTensors

IN_PROMPT = 1 << 30
"""Added to the count of a token that the prompt holds."""


def guide(cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance on logits: `u + scale * (c - u)`.

    Ho and Salimans 2022, eq. 6, with scale = 1 + w there; Janus (Wu et al. 2024) uses it with scale 5.
    """
    return uncond + scale * (cond - uncond)


def penalize(logits_NV: Tensor, seen_NV: Tensor, params: SamplingTensors) -> Tensor:
    """Make tokens that occurred before less likely. `seen_NV` counts how often each was generated, and
    `IN_PROMPT` for the prompt.

    Positive logits of tokens that occurred are divided by the repetition penalty (Keskar et al. 2019, "CTRL",
    sec. 4.1), negative ones multiplied, as in transformers. Then, as OpenAI's API defines it, the frequency
    penalty is subtracted as often as a token was generated, and the presence penalty once.
    """
    penalty, generated_NV = params.penalty[:, None], seen_NV & (IN_PROMPT - 1)
    repeated_NV = torch.where(logits_NV > 0, logits_NV / penalty, logits_NV * penalty)
    logits_NV = torch.where(seen_NV > 0, repeated_NV, logits_NV)
    present_NV = params.presence[:, None] * (generated_NV > 0)
    return logits_NV - params.frequency[:, None] * generated_NV - present_NV


def filter_logits(
    logits_NV: Tensor, temperature_N: Tensor, top_k_N: Tensor, top_p_N: Tensor, min_p_N: Tensor
) -> Tensor:
    """Set tokens that top-k, top-p or min-p drop to -inf.

    Temperature, then top-k, top-p and min-p: the order of transformers' logits warpers. `top_k` keeps the k
    most likely tokens and ties with the last of them; 0 keeps all. `top_p` keeps the smallest set of most
    likely tokens with total probability p or more (Holtzman et al. 2020, sec. 3.1); of equal ones the first.
    `min_p` keeps tokens with at least p times the probability of the most likely one (Nguyen et al. 2024).
    """
    vocabulary = logits_NV.shape[-1]
    ordered, order = (logits_NV / temperature_N[:, None]).sort(dim=-1, descending=True, stable=True)
    last = torch.where(top_k_N > 0, top_k_N, vocabulary).clamp(max=vocabulary) - 1
    dropped = ordered < ordered.gather(1, last[:, None])
    probabilities = ordered.masked_fill(dropped, -math.inf).softmax(-1).double()
    # In float64: in float32 the sums' last bits may depend on the number of rows.
    before = probabilities.cumsum(-1) - probabilities
    dropped |= (before >= top_p_N[:, None]) & (top_p_N < 1.0)[:, None]
    dropped |= ordered < ordered[:, :1] + min_p_N[:, None].log()
    return logits_NV.masked_fill(torch.empty_like(dropped).scatter_(1, order, dropped), -math.inf)


def guided_logits(logits: Tensor, mode: SamplingMode, params: SamplingTensors) -> Tensor:
    """Logits float32 `[N, V]`, after guidance if the mode has it."""
    logits = logits.float()
    if not mode.guided:
        return logits
    cond, uncond = logits.chunk(2)
    return guide(cond, uncond, params.guidance[:, None])


def process_logits(
    logits: Tensor,
    mode: SamplingMode,
    params: SamplingTensors,
    seen_NV: Tensor | None = None,
    masks_NW: Tensor | None = None,
) -> Tensor:
    """Guided logits `[N, V]` after biases, masks, penalties and filters; dropped tokens have -inf."""
    if mode.biased:
        logits = logits.scatter_add(1, params.biased, params.biases)
    if masks_NW is not None:
        logits = apply_masks(logits, masks_NW)
    if seen_NV is not None:
        logits = penalize(logits, seen_NV, params)
    if not mode.filtered:
        return logits
    return filter_logits(logits, params.temperature, params.top_k, params.top_p, params.min_p)


def draw(
    logits_NV: Tensor, mode: SamplingMode, temperature_N: Tensor, seeds_N: Tensor, steps_N: Tensor
) -> Tensor:
    """Sample a token of each row by the exponential race `argmin(E_i / p_i)`, computed in logarithms, or take
    the most likely one."""
    if mode.greedy:
        return logits_NV.argmax(-1)
    noise = exponential_noise(seeds_N, steps_N, logits_NV.shape[-1])
    return (logits_NV / temperature_N[:, None] - noise.log()).argmax(-1)


def sample(
    logits: Tensor,
    mode: SamplingMode,
    params: SamplingTensors,
    seeds_N: Tensor,
    steps_N: Tensor,
    seen_NV: Tensor | None = None,
    masks_NW: Tensor | None = None,
    race: Callable[..., Tensor] = draw,
) -> tuple[Tensor, Tensor]:
    """Sample a token of each request, int64 `[N]`, in float32 whatever the logits' dtype; also returns the
    logits `[N, V]` after guidance and filters. `race` draws from these.

    Logits are `[N, V]`, or with guidance `[2 N, V]`: those of all conditional rows, then those of all
    unconditional ones. A token is -1 where a logit is not finite.
    """
    guided_NV = guided_logits(logits, mode, params)
    logits_NV = process_logits(guided_NV, mode, params, seen_NV, masks_NW)
    tokens_N = race(logits_NV, mode, params.temperature, seeds_N, steps_N)
    return tokens_N.masked_fill(~guided_NV.isfinite().all(-1), -1), logits_NV


def sampling_tensors(
    requests: Sequence[Request], device: torch.device, num_biases: int | None = None
) -> SamplingTensors:
    """The sampling parameters of requests, with 1 for a temperature of none, and as many biases (of 0, where
    there are fewer) as the request with most has, or `num_biases`."""
    params = [request.sampling for request in requests]
    columns = [
        [p.temperature or 1.0 for p in params],
        [p.top_p for p in params],
        [p.guidance_scale or 0.0 for p in params],
        [p.repetition_penalty for p in params],
        [p.min_p for p in params],
        [p.presence_penalty for p in params],
        [p.frequency_penalty for p in params],
    ]
    numbers = upload(torch.tensor(columns), device)
    top_k = upload(torch.tensor([p.top_k for p in params], dtype=torch.long), device)
    biases = [p.logit_bias or {} for p in params]
    width = max(map(len, biases), default=0) if num_biases is None else num_biases
    ids = torch.tensor([[*one, *[0] * (width - len(one))] for one in biases], dtype=torch.long)
    values = torch.tensor([[*one.values(), *[0.0] * (width - len(one))] for one in biases])
    temperature, top_p, guidance, penalty, *rest = numbers
    added = (upload(values, device), upload(ids, device))
    return SamplingTensors._make((temperature, top_p, guidance, penalty, top_k, *rest, *added))


def token_logprobs(
    logits: Tensor, tokens_N: Tensor, mode: SamplingMode, params: SamplingTensors
) -> tuple[Tensor, Tensor]:
    """Log-probabilities after guidance and before temperature and filters: of the sampled token, then of the
    top `MAX_LOGPROBS` ones, `[N, 1 + MAX_LOGPROBS]`, and the latter's token ids `[N, MAX_LOGPROBS]`."""
    scores = guided_logits(logits, mode, params).log_softmax(-1)
    top = scores.topk(min(MAX_LOGPROBS, scores.shape[-1]))
    return torch.cat((scores.gather(1, tokens_N[:, None]), top.values), dim=1), top.indices


def sampled_tokens(
    requests: Sequence[Request], tokens: Sequence[int], logprobs: tuple[Tensor, Tensor] | None
) -> list[SampledToken]:
    """The tokens of requests with the log-probabilities (see `token_logprobs`) that they ask for."""
    if logprobs is None:
        return [SampledToken(token) for token in tokens]
    values, ids = logprobs[0].tolist(), logprobs[1].tolist()
    return [
        SampledToken(token, own, tuple(zip(top, others, strict=True))[: request.logprobs or 0])
        for request, token, (own, *others), top in zip(requests, tokens, values, ids, strict=True)
    ]
