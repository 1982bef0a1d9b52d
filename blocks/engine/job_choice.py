"""One token of every job of an engine: heads, guidance and draws, of jobs that are alike together.

R rows of the cache, m jobs of one voice, D decoder width, V a voice's vocabulary.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..model.kv_slots import sent, take
from .decode_step import Kernels
from .request import Chosen, Job
from .sampling import Voice
from .sampling_params import Sampling, guide, narrow, sample


def choose_all(
    groups: Mapping[Voice, list[Job]], hidden_RD: Tensor, kernels: Kernels | None = None
) -> list[tuple[Job, Chosen]]:
    """One token of every job, from the hidden states of the rows. The device is waited for once, and
    again where log-probabilities are asked for."""
    logits = [_logits(voice, jobs, hidden_RD) for voice, jobs in groups.items()]
    drawn = [_draw(of_voice, jobs, kernels) for of_voice, jobs in zip(logits, groups.values(), strict=True)]
    numbers = iter(torch.cat(drawn).tolist())
    chosen = []
    for of_voice, jobs in zip(logits, groups.values(), strict=True):
        tokens = [next(numbers) for _ in jobs]
        asked = [i for i, job in enumerate(jobs) if job.logprobs is not None]
        told = dict(zip(asked, _logprobs(of_voice, jobs, asked, tokens), strict=True))
        chosen += [(job, told.get(i) or Chosen(tokens[i])) for i, job in enumerate(jobs)]
    return chosen


def _logits(voice: Voice, jobs: Sequence[Job], hidden_RD: Tensor) -> Tensor:
    """Logits after guidance, float32 `[m, V]`: of all the jobs' rows in one product."""
    guided = [i for i, job in enumerate(jobs) if job.rows == 2]
    places = [job.places[0] for job in jobs] + [jobs[i].places[1] for i in guided]
    logits = voice.logits(take(hidden_RD, places)).float()
    cond, uncond = logits[: len(jobs)], logits[len(jobs) :]
    if not guided:
        return cond
    scales = torch.tensor([[jobs[i].guidance_scale] for i in guided])
    mixed = guide(take(cond, guided), uncond, scales.to(logits.device, non_blocking=True))
    if len(guided) == len(jobs):
        return mixed
    return cond.index_copy(0, sent(logits.device, guided)[0], mixed)


def _draw(logits_mV: Tensor, jobs: Sequence[Job], kernels: Kernels | None) -> Tensor:
    """Tokens int64 `[m]`; jobs of equal options are drawn together."""
    groups: dict[Sampling, list[int]] = {}
    for i, job in enumerate(jobs):
        groups.setdefault(job.sampling, []).append(i)
    parts, order = [], []
    for sampling, members in groups.items():
        seeds, steps = [jobs[i].seed for i in members], [jobs[i].step for i in members]
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
    """`sample`; by a kernel where there are some, as a station's recording does."""
    if kernels is None or sampling.temperature == 0.0:
        return sample(logits_mV, sampling, seeds_m, steps_m)
    temperature, tokens_m = sampling.temperature, torch.empty_like(seeds_m)
    if sampling.top_k or sampling.top_p < 1.0:
        logits_mV, temperature = narrow(logits_mV, temperature, sampling.top_k, sampling.top_p), 1.0
    number = logits_mV.new_full((1,), temperature)
    kernels.draw.draw(logits_mV, seeds_m, steps_m, tokens_m, None, guidance=None, temperature=number)
    return tokens_m


def _logprobs(logits_mV: Tensor, jobs: Sequence[Job], asked: list[int], tokens: list[int]) -> list[Chosen]:
    """What is told of the jobs that ask."""
    if not asked:
        return []
    scores = take(logits_mV, asked).log_softmax(-1)
    own = scores.gather(1, sent(scores.device, [tokens[i] for i in asked])[0][:, None])
    top = scores.topk(max(jobs[i].logprobs or 0 for i in asked))
    values, places = torch.cat((own, top.values), dim=1).tolist(), top.indices.tolist()
    found = []
    for i, (logprob, *others), best in zip(asked, values, places, strict=True):
        pairs = zip(best, others, strict=True)
        found.append(Chosen(tokens[i], logprob, tuple(pairs)[: jobs[i].logprobs or 0]))
    return found
