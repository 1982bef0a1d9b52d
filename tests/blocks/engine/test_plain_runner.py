"""The eager runner gives every request its tokens of the plain loop, and keeps its rows in order."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from typing import Any

import pytest
import torch
from bifrons.blocks.engine.plain_runner import PlainRunner
from bifrons.blocks.engine.scheduler import Scheduler
from bifrons.blocks.sampling.request import Request, SamplingParams, TokenHead

MODELS = ["dense", "experts", "latent", "latent-noaux"]
ROWS, CONTEXT = 8, 64
SIZES = pytest.mark.parametrize("sizes", [{"rows": ROWS, "context": CONTEXT}, {}], ids=["fixed", "growing"])


@pytest.fixture(params=MODELS)
def maker(request: pytest.FixtureRequest, small_model, requests_of) -> Any:
    return requests_of(small_model(request.param))


@pytest.fixture
def dense(small_model, requests_of) -> Any:
    return requests_of(small_model("dense"))


@SIZES
def test_mixed_requests_get_the_tokens_that_they_get_alone(maker: Any, sizes: dict[str, int]) -> None:
    scheduler = Scheduler(maker.decoder, **sizes)
    assert isinstance(scheduler.runner, PlainRunner)
    expected = maker.alone(maker.mixed(7))
    assert [len(tokens) for tokens in expected[:5]] == [7, 6, 7, 7, 1]
    requests = maker.mixed(7)
    assert maker.run(scheduler, requests) == expected
    assert {out.reason for out in maker.outs(requests)} == {"length"}
    assert [maker.run(scheduler, [request]) for request in maker.mixed(7)] == [[one] for one in expected]


@SIZES
def test_an_end_token_ends_its_request_only(dense: Any, sizes: dict[str, int]) -> None:
    (tokens,) = dense.alone([dense.answer(9, SamplingParams(1.0), 3, 12)])
    requests = [dense.answer(9, SamplingParams(1.0), seed, 12, eos_id=tokens[5]) for seed in (3, 4, 5)]
    expected = dense.alone(requests)
    assert expected[0] == tokens[: tokens.index(tokens[5])]
    assert dense.run(Scheduler(dense.decoder, **sizes), requests) == expected
    reasons = ["length" if len(one) == 12 else "stop" for one in expected]
    assert [out.reason for out in dense.outs(requests)] == reasons


def test_prompts_in_chunks_give_the_same_tokens(maker: Any) -> None:
    requests = [maker.answer(45, SamplingParams(0.0), seed, 4, prefill_chunk=7) for seed in (1, 2)]
    expected = maker.alone(requests)
    assert maker.run(Scheduler(maker.decoder), requests) == expected


def test_a_growing_cache_is_freed_with_its_requests(dense: Any) -> None:
    scheduler = Scheduler(dense.decoder)
    first, second = [dense.answer(9, SamplingParams(0.0), seed, new) for seed, new in ((1, 4), (2, 9))]
    scheduler.submit([first])
    scheduler.step()
    scheduler.submit([second])
    scheduler.step()
    assert [batch.slots.cache.slots for batch in scheduler.runner.batches] == [13, 18]
    dense.finish(scheduler)
    assert scheduler.runner.batches == []


def test_rows_move_together_with_what_belongs_to_them(dense: Any) -> None:
    """Requests of one and two rows are removed from all places, by cancelling, while others run."""
    for removed in range(4):
        penalized = SamplingParams(0.9, repetition_penalty=2.0)
        requests = [
            dense.image(9, SamplingParams(guidance_scale=3.0), 1, 8),
            dense.answer(7, penalized, 2, 8, seen_ids=dense.ids(7, 2)),
            dense.image(12, SamplingParams(guidance_scale=2.0), 3, 8),
            dense.answer(5, penalized, 4, 8),
        ]
        expected = dense.alone(requests)
        scheduler = Scheduler(dense.decoder, rows=6, context=32)
        scheduler.submit(requests)
        for _ in range(3):
            scheduler.step()
        requests[removed].cancel()
        dense.finish(scheduler)
        outs = dense.outs(requests)
        assert outs.pop(removed).tokens == expected.pop(removed)[:3]
        assert [out.tokens for out in outs] == expected


def test_a_common_prefix_is_copied_from_rows_in_use_and_free_ones(maker: Any) -> None:
    scheduler = Scheduler(maker.decoder, rows=4, context=CONTEXT)
    prefix = maker.prompt(30, 1)
    prompts = [torch.cat((prefix, maker.prompt(4 + seed, 20 + seed))) for seed in range(4)]
    requests = [
        maker.request(maker.text_head, [prompt], SamplingParams(1.0), seed, 5)
        for seed, prompt in enumerate(prompts)
    ]
    expected = maker.alone(requests)
    assert maker.run(scheduler, requests[:2]) == expected[:2]
    assert scheduler.runner.positions_copied == 28  # whole blocks of four
    assert maker.run(scheduler, requests[2:]) == expected[2:]
    assert scheduler.runner.positions_copied == 3 * 28


def failing_head(maker: Any, failures: int) -> TokenHead:
    """A head whose logits fail as often as given."""
    left = [failures]

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        if left[0]:
            left[0] -= 1
            raise RuntimeError("out of memory")
        return maker.model.text_logits(hidden)

    return TokenHead(maker.model.embed_text, logits)


@pytest.mark.parametrize("failures", [1, 2])
@SIZES
def test_a_failed_step_is_repeated_for_each_request(dense: Any, failures: int, sizes: dict[str, int]) -> None:
    """One that fails alone too ends. The others get no token twice, and none counts as seen too early."""
    penalized = SamplingParams(0.9, repetition_penalty=3.0)

    def requests() -> list[Request]:
        broken = dense.request(dense.text_head, [dense.prompt(5, 3)], SamplingParams(0.0), 3, 6)
        return [dense.answer(9, penalized, 1, 6), dense.answer(7, SamplingParams(1.0), 2, 6), broken]

    expected, submitted = dense.alone(requests()), requests()
    submitted[2].head = failing_head(dense, failures)
    scheduler = Scheduler(dense.decoder, **sizes)
    for request in submitted:  # in growing caches, each has its own
        scheduler.submit([request])
        if not sizes:
            scheduler.step()
    dense.finish(scheduler)
    outs = dense.outs(submitted)
    assert [out.tokens for out in outs[:2]] == expected[:2]
    if failures == 1:
        assert outs[2].tokens == expected[2]
    else:
        assert (outs[2].reason, outs[2].tokens) == ("error", [])
        assert str(submitted[2].error) == "out of memory"
