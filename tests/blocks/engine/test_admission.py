"""What waiting requests take before they run: embeddings, which are made together, and room in the cache."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bifrons.blocks.engine import plain_runner
from bifrons.blocks.engine.scheduler import Scheduler
from bifrons.blocks.errors import OptionError, PromptError
from bifrons.blocks.graphs.cuda_graphs import GraphCapturer
from bifrons.blocks.graphs.kv_pool import SCRATCH
from bifrons.blocks.sampling.request import Request, SamplingParams

GREEDY, DRAWN = SamplingParams(0.0), SamplingParams(1.0)


class Embedder:
    """Embeds token ids; notes with how many inputs it is called, and fails for long ones."""

    def __init__(self, maker: Any) -> None:
        self.maker, self.calls = maker, []

    def embed(self, inputs: list[torch.Tensor]) -> list[Any]:
        self.calls.append(len(inputs))
        if any(len(ids) > 20 for ids in inputs):
            raise RuntimeError("out of memory")
        embed_text = self.maker.model.embed_text
        return [SimpleNamespace(ids=ids, embeddings_TD=embed_text(ids)) for ids in inputs]

    def request(self, ids: torch.Tensor, seed: int, sampling: SamplingParams = DRAWN) -> Request:
        head = self.maker.text_head
        more = {"embed": self.embed, "inputs": ids, "prompt_tokens": len(ids)}
        return self.maker.request(head, (), sampling, seed, 5, **more)


def test_waiting_requests_are_embedded_together_and_equal_inputs_once(
    maker: Any, scheduler: Scheduler
) -> None:
    embedder, ids = Embedder(maker), [maker.ids(length, length) for length in (9, 12, 12)]
    penalized = SamplingParams(1.0, repetition_penalty=3.0)
    given = [(ids[0], 1, DRAWN), (ids[0], 2, penalized), (ids[1], 3, DRAWN), (ids[2], 4, penalized)]
    requests = [embedder.request(*one) for one in given]
    plain = [
        maker.request(maker.text_head, [maker.model.embed_text(one)], sampling, seed, 5, seen_ids=one)
        for one, seed, sampling in given
    ]
    assert maker.run(scheduler, requests) == maker.alone(plain)
    assert embedder.calls == [3]


def test_inputs_that_cannot_be_embedded_end_their_request_alone(maker: Any, scheduler: Scheduler) -> None:
    embedder, ids = Embedder(maker), [maker.ids(length) for length in (9, 21, 12)]
    requests = [embedder.request(one, seed) for seed, one in enumerate(ids)]
    found = maker.run(scheduler, requests)
    assert [len(tokens) for tokens in found] == [5, 0, 5]
    assert [out.reason for out in maker.outs(requests)] == ["length", "error", "length"]
    assert str(requests[1].error) == "out of memory"


def test_what_does_not_fit_is_refused(maker: Any, scheduler: Scheduler) -> None:
    with pytest.raises(PromptError, match="at most 57 new tokens fit"):
        scheduler.submit([maker.answer(7, GREEDY, 0, 4), maker.answer(7, GREEDY, 0, 58)])
    assert not scheduler.has_work
    limit = maker.decoder.config.max_positions
    for sizes in ({"rows": 1, "context": 64}, {"rows": 2, "context": 1}, {"rows": 2, "context": limit + 1}):
        with pytest.raises(OptionError, match="accepted: at least 2 rows"):
            Scheduler(maker.decoder, **sizes)


def test_without_memory_for_its_cache_a_request_ends_alone(
    maker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where caches are allocated with the requests, together if that is possible."""

    class SmallBatch(plain_runner.Batch):
        def __init__(self, decoder: Any, rows: int, context: int, *more: Any) -> None:
            if rows * context > 40:
                raise MemoryError("out of memory")
            super().__init__(decoder, rows, context, *more)

    monkeypatch.setattr(plain_runner, "Batch", SmallBatch)
    requests = [maker.answer(length, DRAWN, length, 5) for length in (20, 40, 11)]
    expected = maker.alone(requests)
    assert maker.run(Scheduler(maker.decoder), requests) == [expected[0], [], expected[2]]
    assert [out.reason for out in maker.outs(requests)] == ["length", "error", "length"]
    assert str(requests[1].error) == "out of memory"


def test_what_never_fits_into_the_pool_ends_with_an_error(maker: Any) -> None:
    pytest.importorskip("triton")
    capturer = GraphCapturer()
    scheduler = Scheduler(maker.decoder, rows=2, context=64, capturer=capturer)
    pool = scheduler.runner._pool
    assert pool.take(pool.slots - SCRATCH - 32) is not None  # as if memory were short
    request = maker.answer(30, DRAWN, 1, 20)
    maker.run(scheduler, [request])
    with pytest.raises(OptionError, match="no room for 1 x 50 positions"):
        raise request.error
    assert capturer.made == 0


def test_the_wished_rows_are_allocated_on_the_cpu(maker: Any) -> None:
    assert Scheduler(maker.decoder, rows=32, context=1024).rows == 32


def test_long_jobs_that_arrive_apart_start_together(maker: Any, scheduler: Scheduler) -> None:
    """Beside running requests; chats start at once."""
    first, *jobs = [maker.answer(7, DRAWN, seed, 24, priority=1) for seed in range(3)]
    chat = maker.answer(7, DRAWN, 9, 3)
    expected = maker.alone([first, *jobs, chat])
    outs = maker.outs([first, *jobs, chat])
    scheduler.submit([first])
    scheduler.step()
    begun = []
    for step in range(1, 10):
        if step in (1, 3):
            scheduler.submit([jobs[step // 2]])
        if step == 2:
            scheduler.submit([chat])
        scheduler.step()
        begun += [(step, name) for name, one in zip("abc", (*jobs, chat), strict=True) if one.step == 1]
    assert begun == [(2, "c"), (8, "a"), (8, "b")]
    maker.finish(scheduler)
    assert [out.tokens for out in outs] == expected
