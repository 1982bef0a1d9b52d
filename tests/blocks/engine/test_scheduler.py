"""The scheduler gives every request the tokens that it gets alone, whatever else runs."""

import threading
import time
from typing import Any

import pytest
import torch
from bifrons.blocks.engine.generate import plain_steps
from bifrons.blocks.engine.prefill import prefill
from bifrons.blocks.engine.request import (
    GenerationBatch,
    Request,
    SampledToken,
    SamplingParams,
    TokenHead,
)
from bifrons.blocks.engine.scheduler import QueueFull, Scheduler, SchedulerStopped
from bifrons.blocks.errors import PromptError
from torch import Tensor


@pytest.fixture(scope="module")
def model(small_model) -> Any:
    return small_model("dense")


@pytest.fixture
def scheduler(model):
    scheduler = Scheduler(model.decoder, rows=6, context=256, max_waiting=40)
    yield scheduler
    assert scheduler.close(10)


class Collected:
    """A request's tokens and finish reason, and a callback `do` for its token number `at`."""

    def __init__(self, at=None, do=None) -> None:
        self.choices: list[SampledToken] = []
        self.reason = None
        self.ended = threading.Event()
        self.at, self.do = at, do

    def on_token(self, choice: SampledToken) -> bool | None:
        self.choices.append(choice)
        return self.do() if self.do and len(self.choices) == self.at else None

    def on_end(self, reason: str) -> None:
        assert self.reason is None
        self.reason = reason
        self.ended.set()

    @property
    def tokens(self) -> list[int]:
        assert self.ended.wait(30)
        return [choice.token for choice in self.choices]


class Maker:
    """Requests of one model: answers and images."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.text_head = TokenHead(model.embed_text, model.text_logits)
        self.image_head = TokenHead(model.embed_codes, model.image_logits)

    def prompt(self, length: int, seed: int = 0) -> Tensor:
        ids = torch.randint(704, (length,), generator=torch.Generator().manual_seed(seed))
        return self.model.embed_text(ids)

    def answer(self, prompt, sampling, seed, new, out, **more) -> Request:
        return Request(self.text_head, [prompt], sampling, seed, new, out.on_token, out.on_end, **more)

    def image(self, length, sampling, seed, out) -> Request:
        """An image; with guidance, its unconditional prompt is shorter than the conditional one."""
        prompts = [self.prompt(length, seed), self.prompt(length // 2, seed)][: sampling.rows_each]
        total = self.model.num_codes
        return Request(self.image_head, prompts, sampling, seed, total, out.on_token, out.on_end)

    @torch.no_grad()
    def expected(self, request: Request) -> list[int]:
        """The request's tokens from the plain loop, up to the end token."""
        batch = GenerationBatch(
            request.prompts_TD, request.head, request.sampling, [request.seed], request.max_new_tokens
        )
        tokens = torch.cat(list(plain_steps(self.model.decoder, batch))).tolist()
        return tokens[: tokens.index(request.eos_id)] if request.eos_id in tokens else tokens


@pytest.fixture
def maker(model) -> Maker:
    return Maker(model)


def test_mixed_requests_at_different_times_get_the_tokens_they_get_alone(scheduler, maker):
    answers = [
        (maker.prompt(50, 1), SamplingParams(0.0), 1, 30),
        (maker.prompt(7, 2), SamplingParams(1.0), 2, 40),
        (maker.prompt(19, 3), SamplingParams(0.7, 0, 0.9), 3, 25),
        (maker.prompt(7, 2), SamplingParams(1.0), 4, 7),
    ]
    images = [
        (9, SamplingParams(1.0, guidance_scale=5.0), 5),
        (20, SamplingParams(1.0, 0, 0.95), 6),
        (4, SamplingParams(0.9, 50, guidance_scale=2.5), 7),
        (9, SamplingParams(1.0, guidance_scale=5.0), 8),
    ]
    outs = [Collected() for _ in range(8)]
    eos = maker.expected(maker.answer(*answers[0], outs[0]))[10]  # so that an answer ends early
    requests = [maker.answer(*answer, out, eos_id=eos) for answer, out in zip(answers, outs[:4], strict=True)]
    requests += [maker.image(*image, out) for image, out in zip(images, outs[4:], strict=True)]
    expected = [maker.expected(request) for request in requests]
    assert len(expected[0]) <= 10
    for index in (4, 0, 5, 1, 6, 2, 7, 3):
        request = requests[index]
        before = scheduler.steps
        scheduler.reserve(request.rows)
        scheduler.submit([request])
        deadline = time.monotonic() + 5
        while scheduler.steps < before + 3 and scheduler.rows_promised and time.monotonic() < deadline:
            time.sleep(0.001)
    assert [out.tokens for out in outs] == expected
    assert outs[0].reason == "stop"
    assert [out.reason for out in outs[4:]] == ["length"] * 4
    assert scheduler.rows_promised == scheduler.rows_used == 0


def test_requests_beyond_the_rows_wait_and_share_steps(scheduler, maker):
    outs = [Collected() for _ in range(12)]
    prompt = maker.prompt(7)
    scheduler.reserve(12)
    scheduler.submit([maker.answer(prompt, SamplingParams(1.0), i, 20, out) for i, out in enumerate(outs)])
    assert all(len(out.tokens) == 20 for out in outs)
    # Twelve answers through six rows: two rounds of 19 decoder steps (the first token needs none).
    assert scheduler.steps <= 2 * 20


def test_a_cancelled_request_frees_its_rows_within_a_step_and_the_rest_go_on(scheduler, maker):
    prompt, sampling = maker.prompt(7), SamplingParams(1.0)
    cancelled_out = Collected(at=3, do=lambda: cancelled.cancel())
    rows_used = []
    watching = Collected(at=5, do=lambda: rows_used.append(scheduler.rows_used))
    other = Collected()
    cancelled = maker.image(9, SamplingParams(1.0, guidance_scale=5.0), 5, cancelled_out)
    requests = [
        cancelled,
        maker.answer(prompt, sampling, 8, 40, watching),
        maker.answer(prompt, sampling, 9, 40, other),
    ]
    expected = maker.expected(requests[2])
    scheduler.reserve(4)
    scheduler.submit(requests)
    assert other.tokens == expected
    assert cancelled_out.reason == "cancelled"
    assert len(cancelled_out.tokens) == 3
    assert len(watching.tokens) == 40
    assert rows_used == [2]


def test_log_probabilities_are_those_of_scoring(scheduler, maker):
    out = Collected()
    prompt, decoder = maker.prompt(7), maker.model.decoder
    scheduler.reserve(1)
    scheduler.submit([maker.answer(prompt, SamplingParams(0.0), 0, 1, out, logprobs=3)])
    assert out.ended.wait(30)
    with torch.no_grad():
        hidden = prefill(decoder, [prompt], decoder.new_cache(1, len(prompt)))
        scores = maker.model.text_logits(hidden)[0].log_softmax(-1)
    choice = out.choices[0]
    assert choice.logprob == pytest.approx(scores[choice.token].item(), abs=1e-4)
    assert [token for token, _ in choice.top] == scores.topk(3).indices.tolist()
    assert choice.top[0][0] == choice.token


def test_the_queue_is_bounded_and_requests_that_do_not_fit_are_refused(scheduler, maker):
    scheduler.reserve(46)
    with pytest.raises(QueueFull):
        scheduler.reserve(1)
    scheduler.release(46)
    with pytest.raises(PromptError, match="context holds 256"):
        scheduler.submit([maker.answer(maker.prompt(7), SamplingParams(0.0), 0, 255, Collected())])


def test_closing_finishes_submitted_requests_and_refuses_new_ones(model, maker):
    scheduler = Scheduler(model.decoder, rows=2, context=256, max_waiting=40)
    outs = [Collected() for _ in range(4)]
    scheduler.reserve(4)
    scheduler.submit([maker.answer(maker.prompt(7), SamplingParams(1.0), 1, 30, out) for out in outs])
    assert scheduler.close(30)
    assert [(out.reason, len(out.tokens)) for out in outs] == [("length", 30)] * 4
    with pytest.raises(SchedulerStopped):
        scheduler.reserve(1)


def test_a_failing_step_ends_its_requests_and_the_scheduler_goes_on(scheduler, maker):
    def explode(hidden):
        raise RuntimeError("out of memory")

    failed, good = Collected(), Collected()
    prompt = maker.prompt(7)
    broken = maker.answer(prompt, SamplingParams(0.0), 0, 3, failed)
    broken.head = TokenHead(maker.text_head.embed, explode)
    scheduler.reserve(1)
    scheduler.submit([broken])
    assert failed.tokens == []
    assert failed.reason == "error"
    scheduler.reserve(1)
    scheduler.submit([maker.answer(prompt, SamplingParams(0.0), 0, 3, good)])
    assert len(good.tokens) == 3
