"""Filters and draws do what their definitions say; what the sampling kernel is asked for."""

import pytest
import torch
from bifrons.blocks.engine.request import SamplingParams
from bifrons.blocks.engine.sampling import keep_top_k, keep_top_p, sample
from bifrons.blocks.errors import OptionError


def test_filters_keep_what_they_should() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    assert keep_top_k(logits, 2).isfinite().tolist() == [[False, True, False, True]]
    assert keep_top_p(logits, 0.6).isfinite().tolist() == [[False, True, False, False]]
    assert keep_top_p(logits, 0.7).isfinite().tolist() == [[False, True, False, True]]
    assert keep_top_p(logits, 1.0).isfinite().all()


def test_draws_follow_the_probabilities() -> None:
    """Chi-squared over 40,000 seeds: 4 degrees of freedom, 23.5 is exceeded once in 10,000 times."""
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.09, 0.01])
    count = 40_000
    seeds = torch.arange(count)
    params, logits = SamplingParams(), probabilities.log().expand(count, 5)
    tokens = sample(logits, params.mode, params.tensors, seeds, torch.full_like(seeds, 3))
    expected = probabilities * count
    assert ((torch.bincount(tokens, minlength=5) - expected).pow(2) / expected).sum() < 23.5


def test_guided_rows_come_in_pairs() -> None:
    """Greedy of `u + 3 (c - u)`, whose argmax is neither row's own."""
    logits = torch.tensor([[0.0, 1.0, 0.9], [0.0, 0.9, 0.5]])
    params, zero = SamplingParams(0.0, guidance_scale=3.0), torch.zeros(1, dtype=torch.long)
    assert sample(logits, params.mode, params.tensors, zero, zero).tolist() == [2]


def test_penalized_tokens_are_marked_as_seen() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    params, zero = SamplingParams(0.0, repetition_penalty=2.0), torch.zeros(1, dtype=torch.long)
    seen = torch.zeros(1, 3, dtype=torch.bool)
    tokens = [sample(logits, params.mode, params.tensors, zero, zero, seen).item() for _ in range(3)]
    assert tokens == [0, 1, 0]
    assert seen.tolist() == [[True, True, False]]


def test_static_tensors_get_token_record_and_next_step() -> None:
    params = SamplingParams(0.8)
    logits, seeds, steps = torch.randn(2, 9), torch.tensor([3, 4]), torch.tensor([1, 1])
    plain = sample(logits, params.mode, params.tensors, seeds, steps)
    assert steps.tolist() == [1, 1]
    tokens, record = torch.zeros_like(seeds), torch.zeros(4, 2, dtype=torch.long)
    out = sample(logits, params.mode, params.tensors, seeds, steps, tokens_N=tokens, record_SN=record)
    assert out is tokens
    assert torch.equal(tokens, plain)
    assert torch.equal(record[1], plain)
    assert steps.tolist() == [2, 2]


class FakeKernel:
    """Notes what the sampling kernel is asked for."""

    def draw(self, logits, seeds, steps, tokens, record, *, guidance, temperature) -> None:
        self.shape, self.guidance, self.temperature = logits.shape, guidance, temperature


@pytest.mark.parametrize(
    ("params", "rows", "guidance", "temperature"),
    [
        (SamplingParams(0.5), 2, None, 0.5),
        (SamplingParams(0.0), 2, None, None),
        (SamplingParams(0.5, guidance_scale=3.0), 4, 3.0, 0.5),
        (SamplingParams(0.5, 5, guidance_scale=3.0), 2, None, 1.0),
        (SamplingParams(0.5, 0, 0.9), 2, None, 1.0),
    ],
)
def test_the_kernel_guides_and_draws_what_needs_no_filter(params, rows, guidance, temperature) -> None:
    kernel, seeds = FakeKernel(), torch.zeros(2, dtype=torch.long)
    logits = torch.randn(2 * params.rows_each, 9)
    sample(logits, params.mode, params.tensors, seeds, seeds, kernel=kernel)  # type: ignore[arg-type]
    assert kernel.shape == (rows, 9)
    assert kernel.guidance == guidance
    assert (kernel.temperature if kernel.temperature is None else kernel.temperature.item()) == temperature


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"repetition_penalty": 0.0}]
)
def test_parameters_out_of_range_are_refused(bad) -> None:
    with pytest.raises(OptionError, match=next(iter(bad))):
        SamplingParams(**bad)
