"""Filters, guidance and penalty do what their definitions say, a request at a time; draws follow the
probabilities."""

# pyright: reportArgumentType=false

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from bifrons.blocks.errors import OptionError
from bifrons.blocks.sampling.request import Request, SampledToken, SamplingParams, SamplingTensors, TokenHead
from bifrons.blocks.sampling.sampling import (
    IN_PROMPT,
    filter_logits,
    penalize,
    process_logits,
    sample,
    sampled_tokens,
    sampling_tensors,
    token_logprobs,
)
from hypothesis import given
from hypothesis import strategies as st

CPU = torch.device("cpu")


def requests_with(params: Sequence[SamplingParams], **more: Any) -> list[Request]:
    head = TokenHead(lambda ids: ids, lambda hidden: hidden)
    prompt = torch.zeros(1, 1)
    return [
        Request(head, [prompt] * one.rows, one, seed, 1, lambda sampled: None, lambda reason: None, **more)
        for seed, one in enumerate(params)
    ]


def tensors(*params: SamplingParams) -> SamplingTensors:
    return sampling_tensors(requests_with(params), CPU)


def kept_tokens(logits: Sequence[float], temperature: float, top_k: int, top_p: float) -> set[int]:
    """By the definition, in plain Python: the k most likely tokens and ties with the last of them; of these
    the most likely ones, one after the other, until they have the probability p together."""
    scores = [logit / temperature for logit in logits]
    ranked = sorted(range(len(scores)), key=lambda token: -scores[token])
    if top_k:
        last = scores[ranked[min(top_k, len(ranked)) - 1]]
        ranked = [token for token in ranked if scores[token] >= last]
    if top_p == 1.0:
        return set(ranked)
    weights = [math.exp(scores[token] - scores[ranked[0]]) for token in ranked]
    kept, total = set(), 0.0
    for token, weight in zip(ranked, weights, strict=True):
        if total >= top_p * sum(weights):
            break
        kept.add(token)
        total += weight
    return kept


row = st.tuples(
    st.lists(st.sampled_from([0.0, 0.125, 1.0, 2.5, 2.75, -3.0, 6.0]), min_size=7, max_size=7),
    st.sampled_from([0.25, 1.0, 2.0]),
    st.integers(0, 9),
    st.sampled_from([1.0, 0.97, 0.613, 0.31, 1e-4]),
)


@given(st.lists(row, min_size=1, max_size=4))
def test_filters_keep_what_the_definition_keeps(rows: list[tuple[list[float], float, int, float]]) -> None:
    """Rows with different parameters, filtered together."""
    logits_NV = torch.tensor([logits for logits, *_ in rows])
    _, temperature, top_k, top_p = (torch.tensor(column) for column in zip(*rows, strict=True))
    filtered_NV = filter_logits(logits_NV, temperature, top_k, top_p, torch.zeros_like(top_p))
    for index, one in enumerate(rows):
        kept = filtered_NV[index].isfinite()
        assert set(kept.nonzero()[:, 0].tolist()) == kept_tokens(*one)
        assert torch.equal(filtered_NV[index, kept], logits_NV[index, kept])


def test_draws_follow_the_probabilities() -> None:
    """Chi-squared over 40,000 seeds: 4 degrees of freedom, 23.5 is exceeded once in 10,000 times."""
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.09, 0.01])
    count = 40_000
    seeds, one = torch.arange(count), torch.ones(count)
    params = tensors(SamplingParams())._replace(temperature=one)
    logits = probabilities.log().expand(count, 5)
    tokens, _ = sample(logits, SamplingParams().mode, params, seeds, torch.full_like(seeds, 3))
    expected = probabilities * count
    assert ((torch.bincount(tokens, minlength=5) - expected).pow(2) / expected).sum() < 23.5


MODES = {
    "greedy": [SamplingParams(0.0)] * 3,
    "drawn": [SamplingParams(0.5), SamplingParams(1.0), SamplingParams(2.0)],
    "filtered": [SamplingParams(0.9, 5), SamplingParams(1.0, 0, 0.7), SamplingParams(1.5, 20, 0.9)],
    "guided": [SamplingParams(guidance_scale=scale) for scale in (0.0, 1.5, 5.0)],
    "guided and filtered": [SamplingParams(0.8, k, 0.9, guidance_scale=3.0) for k in (0, 4, 9)],
    "penalized": [SamplingParams(1.0, repetition_penalty=penalty) for penalty in (0.5, 1.3, 3.0)],
}


@pytest.mark.parametrize("params", MODES.values(), ids=MODES)
def test_requests_sampled_together_get_their_own_tokens(params: list[SamplingParams]) -> None:
    mode, count, vocabulary = params[0].mode, len(params), 40
    assert all(one.mode == mode for one in params)
    generator = torch.Generator().manual_seed(0)
    logits_GNV = 3 * torch.randn(params[0].rows, count, vocabulary, generator=generator)
    seen_NV = torch.rand(count, vocabulary, generator=generator) < 0.4 if mode.penalized else None
    for step in range(20):
        seeds, steps = torch.arange(count), torch.tensor([step, 0, 2 * step])
        together, _ = sample(logits_GNV.flatten(0, 1), mode, tensors(*params), seeds, steps, seen_NV)
        for n, one in enumerate(params):
            seen = None if seen_NV is None else seen_NV[n : n + 1]
            alone, _ = sample(logits_GNV[:, n], mode, tensors(one), seeds[n : n + 1], steps[n : n + 1], seen)
            assert alone.item() == together[n].item()


def test_guidance_reads_conditional_rows_first() -> None:
    """Greedy of `u + 3 (c - u)`, whose argmax is neither row's own."""
    cond, uncond = [[0.0, 1.0, 0.9], [2.0, 0.0, 1.0]], [[0.0, 0.9, 0.5], [0.0, 0.0, 1.0]]
    params, zero = SamplingParams(0.0, guidance_scale=3.0), torch.zeros(2, dtype=torch.long)
    logits = torch.tensor(cond + uncond)
    assert sample(logits, params.mode, tensors(params, params), zero, zero)[0].tolist() == [2, 0]


def test_a_penalty_moves_seen_tokens_down() -> None:
    logits = torch.tensor([[3.0, 2.0, -1.0, -1.5]])
    params, zero = SamplingParams(0.0, repetition_penalty=2.0), torch.zeros(1, dtype=torch.long)
    for seen, token in (([], 0), ([0], 1), ([0, 1], 0), ([3], 0)):
        seen_NV = torch.zeros(1, 4, dtype=torch.bool)
        seen_NV[0, seen] = True
        assert sample(logits, params.mode, tensors(params), zero, zero, seen_NV)[0].tolist() == [token]
    negative = logits - 4.0  # -1, -2, -5, -5.5: a seen token's is multiplied
    seen_NV = torch.tensor([[True, True, False, False]])
    assert sample(negative, params.mode, tensors(params), zero, zero, seen_NV)[0].tolist() == [0]
    params = SamplingParams(0.0, repetition_penalty=6.0)
    assert sample(negative, params.mode, tensors(params), zero, zero, seen_NV)[0].tolist() == [2]


def test_log_probabilities_are_of_guided_logits_without_filters() -> None:
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(0.3, 2, guidance_scale=2.0)
    requests = [*requests_with([params], logprobs=3), *requests_with([params], logprobs=0)]
    tokens_N = torch.tensor([7, 30])
    logprobs = token_logprobs(logits, tokens_N, requests[0].mode, sampling_tensors(requests, CPU))
    first, second = sampled_tokens(requests, [7, 30], logprobs)
    expected = (logits[2:] + 2.0 * (logits[:2] - logits[2:])).log_softmax(-1)
    assert first.logprob == pytest.approx(expected[0, 7].item(), abs=1e-5)
    assert second == SampledToken(30, pytest.approx(expected[1, 30].item(), abs=1e-5))
    top = expected[0].topk(3)
    assert [token for token, _ in first.top] == top.indices.tolist()
    assert [logprob for _, logprob in first.top] == pytest.approx(top.values.tolist(), abs=1e-5)


def test_penalties_count_generated_tokens_only() -> None:
    """OpenAI's formula: frequency times the count, and presence once."""
    params = SamplingParams(1.0, presence_penalty=0.5, frequency_penalty=0.25)
    counts = torch.tensor([[0, 1, 3, IN_PROMPT, IN_PROMPT + 2]], dtype=torch.int32)
    found = penalize(torch.ones(1, 5), counts, tensors(params))
    assert found.tolist() == [[1.0, 0.25, -0.25, 1.0, 0.0]]
    repeated = penalize(torch.ones(1, 5), counts, tensors(SamplingParams(repetition_penalty=2.0)))
    assert repeated.tolist() == [[1.0, 0.5, 0.5, 0.5, 0.5]]


def test_min_p_keeps_what_is_likely_beside_the_best() -> None:
    """At temperature 2 the probabilities are as 1 : 0.5 : 0.25 : 0.1."""
    logits = 2 * torch.tensor([[1.0, 0.5, 0.25, 0.1]]).log()
    for min_p, kept in ((0.0, 4), (0.09, 4), (0.2, 3), (0.3, 2), (1.0, 1)):
        params = SamplingParams(2.0, min_p=min_p)
        found = process_logits(logits, params.mode, tensors(params))
        assert int(found.isfinite().sum()) == kept


def test_biases_are_added() -> None:
    biased = [SamplingParams(0.0, logit_bias={2: 7.0, 0: -100.0}), SamplingParams(0.0, logit_bias={3: 2.0})]
    logits, zero = torch.tensor([[9.0, 3.0, 0.0, 2.0]] * 2), torch.zeros(2, dtype=torch.long)
    assert sample(logits, biased[0].mode, tensors(*biased), zero, zero)[0].tolist() == [2, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("params", [one[0] for one in MODES.values()], ids=MODES)
def test_rows_whose_logits_are_not_finite_get_no_token(params: SamplingParams, value: float) -> None:
    logits, zero = torch.randn(params.rows, 2, 9), torch.zeros(2, dtype=torch.long)
    seen = torch.ones(2, 9, dtype=torch.bool) if params.mode.penalized else None
    logits[0, 1, 4] = value
    tokens, _ = sample(logits.flatten(0, 1), params.mode, tensors(params, params), zero, zero, seen)
    assert tokens[0] >= 0
    assert tokens[1] == -1


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"min_p": 1.1},
        {"presence_penalty": 2.5},
        {"frequency_penalty": -3},
        {"logit_bias": [5]},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {5: 101}},
        {"logit_bias": dict.fromkeys(range(1025), 1.0)},
    ],
)
def test_parameters_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(bad))):
        SamplingParams(**bad)  # type: ignore[arg-type]
