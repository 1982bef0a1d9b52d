"""Steps over windows give every request its tokens of the plain loop, whatever the drafts. On the CPU,
Triton's interpreter runs the kernels, and a replay runs the captured work again."""

import os
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.drafts import Drawn, JacobiDrafts, LookupDrafts
from bifrons.blocks.engine.scheduler import Scheduler
from bifrons.blocks.graphs.cuda_graphs import GraphCapturer, Work
from bifrons.blocks.graphs.graph_runner import GraphRunner
from bifrons.blocks.sampling.request import SamplingParams
from torch import Tensor

pytestmark = [
    pytest.mark.usefixtures("few_programs"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="test_graph_runner_cuda.py"),
]


@dataclass(frozen=True)
class KnownDrafts:
    """Drafts of known tokens of one request; those of every fourth step are wrong."""

    tokens: tuple[int, ...]

    def drafter(self, requests: int, vocabulary: int, tokens: int, device: torch.device) -> Any:
        return self

    def start(self, index: int, prompt_ids: Tensor | None, tokens: Any = ()) -> None: ...

    def record(self, drawn: Drawn) -> None: ...

    def propose(self, drawn: Drawn, count: int) -> Tensor:
        first = int(drawn.steps_N[0] + drawn.counts_N[0])
        known = [max(0, self.tokens[i] - (i % 4 == 3)) for i in range(first, first + count)]
        return torch.tensor([known])


def with_drafts(requests: list[Any], expected: list[list[int]], speculates: tuple[Any, ...]) -> list[Any]:
    """The requests with drafts of every kind, in turn."""
    for index, request in enumerate(requests):
        known = KnownDrafts(tuple(expected[index]) + (0,) * 9)
        request.head = replace(request.head, drafts=(known, LookupDrafts(), JacobiDrafts(3))[index % 3])
        request.speculate = speculates[index % len(speculates)]
    return requests


def test_tokens_are_those_without_drafts(small_model, requests_of, warm_up_capturer) -> None:
    """Windows of several sizes, beside a request without; guidance, a penalty and log-probabilities."""
    maker = requests_of(small_model("dense-tiny"))

    def some() -> list[Any]:
        return [maker.mixed(5)[index] for index in (0, 3, 7, 1)]

    expected = maker.alone(some())
    requests = with_drafts(some(), expected, (4, 3, 3, False))
    scheduler = Scheduler(maker.decoder, capturer=warm_up_capturer())
    assert isinstance(scheduler.runner, GraphRunner)
    assert maker.run(scheduler, requests) == expected
    assert requests[0].passes == 3  # 1, 3 and 1 tokens: the draft of step 3 is wrong
    assert scheduler.runner._windows.enabled
    assert scheduler.runner._pool.is_unused


def test_requests_that_arrive_and_leave_keep_their_tokens(small_model, requests_of, warm_up_capturer) -> None:
    """With latent attention; a request joins those with drafts, and goes on when they have ended."""
    maker = requests_of(small_model("latent-tiny"))
    makes = [
        partial(maker.answer, 9, SamplingParams(1.0), 1, 5),
        partial(maker.answer, 5, SamplingParams(0.0), 2, 7),
    ]
    expected = maker.alone([make() for make in makes])
    requests = with_drafts([make() for make in makes], expected, (3, False))
    scheduler = Scheduler(maker.decoder, capturer=warm_up_capturer())
    scheduler.submit(requests[:1])
    scheduler.step()
    scheduler.submit(requests[1:])
    maker.finish(scheduler)
    assert [out.tokens for out in maker.outs(requests)] == expected
    assert requests[0].passes < 5
    assert requests[1].passes == 7


def test_a_step_over_windows_that_fails_goes_on_without(small_model, requests_of, caplog) -> None:
    maker = requests_of(small_model("dense-tiny"))

    class Failing(GraphCapturer):
        def __call__(self, work: Work) -> Work:
            if self.made == 2:  # after the prompt and the first draw: the decoder
                self.made += 1
                work()
                raise RuntimeError("out of memory")
            return super().__call__(work)

    make = partial(maker.answer, 9, SamplingParams(1.0, repetition_penalty=2.0), 1, 4)
    expected = maker.alone([make()])
    requests = with_drafts([make()], expected, (4,))
    assert maker.run(Scheduler(maker.decoder, capturer=Failing()), requests) == expected
    assert requests[0].passes == 4
    assert "a step over windows failed" in caplog.text
