"""What the sampling kernel is asked for."""

from typing import Any

import pytest
import torch
from bifrons.blocks.graphs.sampling_graphs import sample_by_kernel
from bifrons.blocks.sampling.request import Request, SamplingParams, TokenHead
from bifrons.blocks.sampling.sampling import sampling_tensors
from torch import Tensor

HEAD = TokenHead(lambda ids: ids, lambda hidden: hidden)


class FakeKernel:
    """Notes what the sampling kernel is asked for."""

    def draw(
        self,
        logits: Tensor,
        seeds: Tensor,
        steps: Tensor,
        guidance: Any,
        temperature: Any,
        some_dropped: bool = False,
    ) -> Tensor:
        self.shape = tuple(logits.shape)
        self.numbers = [None if x is None else x.tolist() for x in (guidance, temperature)]
        return torch.zeros_like(seeds)


@pytest.mark.parametrize(
    ("params", "rows", "guidance", "temperature"),
    [
        (SamplingParams(0.5), 2, None, 0.5),
        (SamplingParams(0.0), 2, None, None),
        (SamplingParams(0.5, guidance_scale=3.0), 4, 3.0, 0.5),
        (SamplingParams(0.5, 5, guidance_scale=3.0), 2, None, 0.5),
        (SamplingParams(0.5, 0, 0.9), 2, None, 0.5),
    ],
)
def test_the_kernel_guides_and_draws_what_needs_no_filter(params, rows, guidance, temperature) -> None:
    kernel, seeds = FakeKernel(), torch.zeros(2, dtype=torch.long)
    logits = torch.randn(2 * params.rows, 9)
    prompts = [torch.zeros(1, 1)] * params.rows
    requests = [
        Request(HEAD, prompts, params, seed, 1, lambda sampled: None, lambda reason: None) for seed in (0, 1)
    ]
    tensors = sampling_tensors(requests, torch.device("cpu"))
    sample_by_kernel(kernel, logits, params.mode, tensors, seeds, seeds, None, None)  # type: ignore[arg-type]
    assert kernel.shape == (rows, 9)
    assert kernel.numbers == [number and [number] * 2 for number in (guidance, temperature)]
