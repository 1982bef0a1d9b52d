"""From logits to tokens: guidance, repetition penalty, temperature and filters, and the draw.

N requests of one token head and mode, V vocabulary. A request's token depends on its own logits, seed and
step only. Eager and captured steps share `sample`.
"""

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from ..device import upload
from .philox import exponential_noise
from .request import MAX_LOGPROBS, Request, SampledToken, SamplingMode, SamplingTensors


def guide(cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance on logits: `u + scale * (c - u)`.

    Ho and Salimans 2022, eq. 6, with scale = 1 + w there; Janus (Wu et al. 2024) uses it with scale 5.
    """
    return uncond + scale * (cond - uncond)


def penalize(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Make tokens that were `seen` (a mask of the logits' shape) less likely: positive logits are divided by
    the penalty (Keskar et al. 2019, "CTRL", sec. 4.1), negative ones multiplied, as in transformers."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def filter_logits(logits_NV: Tensor, temperature_N: Tensor, top_k_N: Tensor, top_p_N: Tensor) -> Tensor:
    """Set tokens that top-k or top-p drop to -inf.

    Temperature, then top-k, then top-p: the order of transformers' logits warpers. `top_k` keeps the k most
    likely tokens and ties with the last of them; 0 keeps all. `top_p` keeps the smallest set of most likely
    tokens with total probability p or more (Holtzman et al. 2020, sec. 3.1); of equal ones the first.
    """
    vocabulary = logits_NV.shape[-1]
    ordered, order = (logits_NV / temperature_N[:, None]).sort(dim=-1, descending=True, stable=True)
    last = torch.where(top_k_N > 0, top_k_N, vocabulary).clamp(max=vocabulary) - 1
    dropped = ordered < ordered.gather(1, last[:, None])
    probabilities = ordered.masked_fill(dropped, -math.inf).softmax(-1).double()
    # In float64: in float32 the sums' last bits may depend on the number of rows.
    before = probabilities.cumsum(-1) - probabilities
    dropped |= (before >= top_p_N[:, None]) & (top_p_N < 1.0)[:, None]
    return logits_NV.masked_fill(torch.empty_like(dropped).scatter_(1, order, dropped), -math.inf)


def apply_masks(logits_NV: Tensor, masks_NW: Tensor) -> Tensor:
    """Set tokens whose bit in a mask of `OutputMatcher` is 0 to -inf."""
    bits = torch.arange(32, dtype=torch.int32, device=masks_NW.device)
    allowed = ((masks_NW[:, :, None] >> bits) & 1).flatten(1)[:, : logits_NV.shape[1]]
    return logits_NV.masked_fill(allowed == 0, -math.inf)


def process_logits(
    logits: Tensor,
    mode: SamplingMode,
    params: SamplingTensors,
    seen_NV: Tensor | None = None,
    masks_NW: Tensor | None = None,
) -> Tensor:
    """Logits float32 `[N, V]` after guidance, masks, penalty and filters; dropped tokens have -inf."""
    logits = logits.float()
    if mode.guided:
        cond, uncond = logits.chunk(2)
        logits = guide(cond, uncond, params.guidance[:, None])
    if masks_NW is not None:
        logits = apply_masks(logits, masks_NW)
    if seen_NV is not None:
        logits = penalize(logits, seen_NV, params.penalty[:, None])
    return filter_logits(logits, params.temperature, params.top_k, params.top_p) if mode.filtered else logits


def draw(logits_NV: Tensor, temperature_N: Tensor, seeds_N: Tensor, steps_N: Tensor) -> Tensor:
    """Sample a token of each row by the exponential race `argmin(E_i / p_i)`, computed in logarithms."""
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
    kernel: ModuleType | None = None,
) -> Tensor:
    """Sample a token of each request, int64 `[N]`, in float32 whatever the logits' dtype.

    Logits are `[N, V]`, or with guidance `[2 N, V]`: those of all conditional rows, then those of all
    unconditional ones. A token is -1 where a logit is not a number. `kernel` (`kernels.sampling_triton`)
    applies guidance and draws in two launches.
    """
    if kernel is not None and mode.draws_raw_logits:
        guidance = params.guidance if mode.guided else None
        temperature = None if mode.greedy else params.temperature
        return kernel.draw(logits, seeds_N, steps_N, guidance, temperature)
    logits_NV = process_logits(logits, mode, params, seen_NV, masks_NW)
    if kernel is not None:
        return kernel.draw(logits_NV, seeds_N, steps_N, None, None if mode.greedy else params.temperature)
    if mode.greedy:
        tokens_N = logits_NV.argmax(-1)
    else:
        tokens_N = draw(logits_NV, params.temperature, seeds_N, steps_N)
    return tokens_N.masked_fill(logits_NV.isnan().any(-1), -1)


def sampling_tensors(requests: Sequence[Request], device: torch.device) -> SamplingTensors:
    """The sampling parameters of requests; 1 stands for a guidance scale and a temperature of none."""
    params = [request.sampling for request in requests]
    numbers = torch.tensor(
        [[p.temperature or 1.0, p.top_p, p.guidance_scale or 0.0, p.repetition_penalty] for p in params]
    )
    top_k = torch.tensor([p.top_k for p in params])
    return SamplingTensors(*upload(numbers.t().contiguous(), device), top_k=upload(top_k, device))


def output_masks(requests: Sequence[Request], device: torch.device) -> Tensor:
    """The masks of requests with a matcher, int32 `[N, W]`."""
    masks = [request.matcher.mask_W for request in requests if request.matcher is not None]
    return upload(torch.from_numpy(np.stack(masks)), device)


def token_logprobs(
    logits: Tensor, tokens_N: Tensor, mode: SamplingMode, params: SamplingTensors
) -> tuple[Tensor, Tensor]:
    """Log-probabilities after guidance and before temperature and filters: of the sampled token, then of the
    top `MAX_LOGPROBS` ones, `[N, 1 + MAX_LOGPROBS]`, and the latter's token ids `[N, MAX_LOGPROBS]`."""
    plain = mode._replace(filtered=False)
    scores = process_logits(logits, plain, params).log_softmax(-1)
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
