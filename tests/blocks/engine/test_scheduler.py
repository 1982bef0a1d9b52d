"""Which requests run when, and that nothing that happens to one changes another's tokens."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bifrons.blocks.engine.prefill import prefill
from bifrons.blocks.engine.scheduler import Scheduler
from bifrons.blocks.errors import BifronsError
from bifrons.blocks.sampling.request import Request, SamplingParams

GREEDY, DRAWN = SamplingParams(0.0), SamplingParams(1.0)
GUIDED = SamplingParams(1.0, guidance_scale=5.0)


def test_late_requests_get_the_tokens_that_they_get_alone(maker: Any, scheduler: Scheduler) -> None:
    """Through six rows, in an order in which images and answers alternate."""
    requests = [maker.mixed(12)[index] for index in (5, 0, 7, 1, 6, 3, 2, 4)]
    expected = maker.alone(requests)
    for request in requests:
        scheduler.submit([request])
        for _ in range(2):
            scheduler.step()
    maker.finish(scheduler)
    assert [out.tokens for out in maker.outs(requests)] == expected
    assert scheduler.tokens == sum(len(tokens) for tokens in expected)


def test_requests_beyond_the_rows_wait_and_share_steps(maker: Any, scheduler: Scheduler) -> None:
    requests = [maker.answer(7, DRAWN, seed, 20) for seed in range(12)]
    scheduler.submit(requests)
    scheduler.step()
    assert scheduler.rows_used == 6
    maker.finish(scheduler)
    assert all(len(out.tokens) == 20 for out in maker.outs(requests))
    assert scheduler.steps == 2 * 20


def started(scheduler: Scheduler, requests: list[Request]) -> list[int]:
    """Which of the requests have got a token."""
    scheduler.step()
    return [index for index, request in enumerate(requests) if request.delivered]


def test_lower_priorities_start_first_and_equal_ones_in_order(maker: Any) -> None:
    scheduler, order = Scheduler(maker.decoder, rows=2, context=64), []
    requests = [
        maker.image(6, GUIDED, seed, 2, priority=priority) for seed, priority in enumerate((1, 1, 0, 2, 0, 1))
    ]
    for request in requests:
        request.on_end = lambda reason, seed=request.seed: order.append(seed)
    scheduler.submit(requests[:4])
    scheduler.step()
    scheduler.submit(requests[4:])
    maker.finish(scheduler)
    assert order == [2, 4, 0, 1, 5, 3]


def test_an_eighth_of_the_rows_is_kept_for_answers(maker: Any) -> None:
    scheduler = Scheduler(maker.decoder, rows=16, context=64)
    images = [maker.image(6, GUIDED, seed, 12, priority=1) for seed in range(9)]
    scheduler.submit(images)
    assert started(scheduler, images) == list(range(7))
    answers = [maker.answer(6, DRAWN, seed, 3) for seed in range(3)]
    expected = maker.alone(answers)
    scheduler.submit(answers)
    assert started(scheduler, answers) == [0, 1]
    maker.finish(scheduler)
    assert [out.tokens for out in maker.outs(answers)] == expected
    assert {out.reason for out in maker.outs(images)} == {"length"}


def test_images_use_all_rows_if_there_are_few(maker: Any) -> None:
    scheduler = Scheduler(maker.decoder, rows=2, context=64)
    images = [maker.image(6, GUIDED, seed, 3, priority=1) for seed in range(2)]
    expected = maker.alone(images)
    assert maker.run(scheduler, images) == expected


def test_cancelling_frees_rows_before_the_next_step(maker: Any, collector: Any) -> None:
    scheduler, rows_used = Scheduler(maker.decoder, rows=3, context=64), []
    cancelled = maker.image(9, GUIDED, 5, 12, out=collector(at=3, do=lambda: cancelled.cancel()))
    other = maker.answer(7, DRAWN, 9, 12)
    waiting = maker.image(9, GUIDED, 6, 4, out=collector(at=1, do=lambda: rows_used.append(scheduler.steps)))
    expected = maker.alone([cancelled, other, waiting])
    found = maker.run(scheduler, [cancelled, other, waiting])
    assert found == [expected[0][:3], *expected[1:]]
    assert [out.reason for out in maker.outs([cancelled, other, waiting])] == [
        "cancelled",
        "length",
        "length",
    ]
    assert rows_used == [4]  # the step after the one that delivered the third token


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_cancel_ends_requests_that_wait_or_run(maker: Any, scheduler: Scheduler, steps: int) -> None:
    requests = [maker.image(9, GUIDED, seed, 12) for seed in range(5)]
    expected = maker.alone(requests)
    scheduler.submit(requests)
    for _ in range(steps):
        scheduler.step()
    scheduler.cancel([requests[0], requests[4]])
    assert [requests[index].ended for index in (0, 4)] == [True, True]
    assert scheduler.rows_used == (4 if steps else 0)
    maker.finish(scheduler)
    outs = maker.outs(requests)
    assert outs[0].tokens == expected[0][:steps]
    assert outs[4].tokens == []
    assert [out.tokens for out in outs[1:4]] == expected[1:4]
    scheduler.cancel(requests)  # of no effect: all have ended
    assert [out.reason for out in outs] == ["cancelled", "length", "length", "length", "cancelled"]


def test_a_callback_may_cancel_other_requests(maker: Any, scheduler: Scheduler, collector: Any) -> None:
    other = maker.answer(7, DRAWN, 2, 12)
    one = maker.answer(7, DRAWN, 1, 12, out=collector(at=2, do=lambda: scheduler.cancel([other])))
    expected = maker.alone([one, other])
    found = maker.run(scheduler, [one, other])
    assert found[0] == expected[0]
    assert found[1] == expected[1][:2]
    assert maker.outs([other])[0].reason == "cancelled"


def test_a_callback_that_returns_true_finishes_its_request(
    maker: Any, scheduler: Scheduler, collector: Any
) -> None:
    requests = [
        maker.answer(7, DRAWN, 1, 12, out=collector(at=4, do=lambda: True)),
        maker.answer(7, DRAWN, 2, 12),
    ]
    expected = maker.alone(requests)
    assert maker.run(scheduler, requests) == [expected[0][:4], expected[1]]
    assert maker.outs(requests)[0].reason == "stop"


def explode(*args: object) -> Any:
    raise RuntimeError("out of memory")


def failing_prompt(maker: Any, request: Request) -> None:
    request.prompts_TD = [torch.zeros(6, 5)]  # of another width


def failing_input(maker: Any, request: Request) -> None:
    request.head = type(request.head)(explode, request.head.logits)


def failing_head(maker: Any, request: Request) -> None:
    request.head = type(request.head)(request.head.embed, explode)


def failing_token(maker: Any, request: Request) -> None:
    request.on_token.__self__.at, request.on_token.__self__.do = 1, explode  # type: ignore[attr-defined]


def failing_embed(maker: Any, request: Request) -> None:
    request.prompts_TD, request.embed, request.inputs = (), explode, "a picture"


@pytest.mark.parametrize(
    ("fail", "tokens"),
    [(failing_prompt, 0), (failing_input, 0), (failing_head, 0), (failing_token, 1), (failing_embed, 0)],
)
def test_a_request_that_fails_ends_alone(
    maker: Any, scheduler: Scheduler, fail: Callable[[Any, Request], None], tokens: int
) -> None:
    requests = [maker.answer(6 + seed, DRAWN, seed, 8) for seed in range(4)]
    expected = maker.alone(requests)
    broken = requests.pop(2)
    expected[2:3] = []
    fail(maker, broken)
    scheduler.submit([requests[0], broken, requests[1]])
    scheduler.step()
    maker.run(scheduler, requests[2:])
    (out,) = maker.outs([broken])
    assert (out.reason, len(out.tokens)) == ("error", tokens)
    assert isinstance(broken.error, RuntimeError)
    assert [one.tokens for one in maker.outs(requests)] == expected


@pytest.mark.parametrize("sampling", [SamplingParams(0.0), SamplingParams(1.0), SamplingParams(1.0, 5)])
def test_a_request_whose_logits_are_not_numbers_ends_alone(
    maker: Any, scheduler: Scheduler, sampling: SamplingParams
) -> None:
    broken, good = maker.answer(6, sampling, 1, 5), maker.answer(6, sampling, 2, 5)
    expected = maker.alone([good])
    broken.prompts_TD[0][-1] = torch.nan
    _, tokens = maker.run(scheduler, [broken, good])
    assert tokens == expected[0]
    assert isinstance(broken.error, BifronsError)
    assert "not numbers" in str(broken.error)


def test_an_end_callback_that_fails_harms_no_one(maker: Any, scheduler: Scheduler) -> None:
    requests = [maker.answer(7, DRAWN, seed, 5) for seed in (1, 2)]
    expected = maker.alone(requests)
    requests[0].on_end = explode
    assert maker.run(scheduler, requests) == expected
    assert requests[0].ended


def test_log_probabilities_are_those_of_scoring(maker: Any, scheduler: Scheduler, collector: Any) -> None:
    out, decoder = collector(), maker.decoder
    request = maker.answer(7, GREEDY, 0, 1, logprobs=3, out=out)
    with torch.no_grad():
        hidden = prefill(decoder, request.prompts_TD, decoder.new_cache(1, 7))
        scores = maker.model.text_logits(hidden)[0].log_softmax(-1)
    maker.run(scheduler, [request])
    (sampled,) = out.sampled
    assert sampled.logprob == pytest.approx(scores[sampled.token].item(), abs=1e-4)
    assert [token for token, _ in sampled.top] == scores.topk(3).indices.tolist()
    assert sampled.top[0][0] == sampled.token
