"""A scheduler whose decode steps are captured: as CUDA graphs on CUDA; everything but graphs on the CPU."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from bifrons.blocks.engine.generate import plain_steps
from bifrons.blocks.engine.graph_buffers import GraphedSteps
from bifrons.blocks.engine.prefill import BLOCK_SIZE, MIN_SHARED, Prefiller, decode_one, prefill
from bifrons.blocks.engine.request import GenerationBatch, Request, SamplingParams, TokenHead
from bifrons.blocks.engine.scheduler import Scheduler
from bifrons.blocks.graphs import decode_step
from bifrons.blocks.graphs.cuda_graphs import GraphCapturer, Work
from bifrons.blocks.graphs.decode_step import import_kernels
from bifrons.blocks.model.decoder import Decoder
from bifrons.blocks.model.kv_slots import KVSlots
from torch import Tensor

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=on_cuda)]
MODELS = ["dense", "experts", "latent", "latent-noaux"]
ROWS, CONTEXT = 6, 96
BUCKETS = 4  # of six rows: 1, 2, 4 and all


@dataclass
class TrackedRequest:
    """A request, with the tokens and finish reasons that it got."""

    head: TokenHead
    prompts_TD: list[Tensor]
    sampling: SamplingParams
    seed: int
    new: int
    tokens: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def submittable(self) -> Request:
        def end(reason: str) -> None:
            self.reasons.append(reason)
            self.ended.set()

        given = (self.head, self.prompts_TD, self.sampling, self.seed, self.new)
        return Request(*given, lambda choice: self.tokens.append(choice.token), end)

    @torch.no_grad()
    def alone(self, decoder: Decoder) -> list[int]:
        batch = GenerationBatch(self.prompts_TD, self.head, self.sampling, [self.seed], self.new)
        return torch.cat(list(plain_steps(decoder, batch))).tolist()


@dataclass
class RequestMaker:
    """Requests of a model: every third a guided image if the model has an image head, the others answers."""

    model: torch.nn.Module

    @property
    def decoder(self) -> Decoder:
        return self.model.decoder  # type: ignore[return-value]

    def make(self, seed: int, length: int, new: int) -> TrackedRequest:
        model, generator = self.model, torch.Generator().manual_seed(seed % 4)
        ids = torch.randint(9, 250, (2, length), generator=generator).to(self.decoder.device)
        prompts = [model.embed_text(row).detach() for row in ids]
        sampling = SamplingParams(*((0.0,), (1.0,), (0.7, 0, 0.9), (1.0, 20))[seed % 4])
        if seed % 3 == 0 and hasattr(model, "embed_codes"):
            head = TokenHead(model.embed_codes, model.image_logits)
            sampling = replace(sampling, guidance_scale=3.0)
            return TrackedRequest(head, [prompts[0], prompts[1][: length // 2]], sampling, seed, new)
        return TrackedRequest(
            TokenHead(model.embed_text, model.text_logits), prompts[:1], sampling, seed, new
        )

    def few(self) -> list[TrackedRequest]:
        """Six answers that end one after the other, so that every bucket of rows occurs."""
        requests = [self.make(3 * i + 1, 9 + 7 * (i % 3), 3 * i + 3) for i in range(ROWS)]
        assert all(len(request.prompts_TD) == 1 for request in requests)
        return requests

    def many(self, count: int) -> list[TrackedRequest]:
        return [self.make(i, 20 + 9 * (i % 4), 2 + 5 * i % 17) for i in range(count)]


@pytest.fixture
def make_maker(small_model) -> Callable[..., RequestMaker]:
    return lambda name, device="cpu": RequestMaker(small_model(name, device))


@pytest.fixture(params=MODELS)
def maker(request: pytest.FixtureRequest, make_maker) -> RequestMaker:
    return make_maker(request.param)


@contextmanager
def running(decoder: Decoder, capturer: GraphCapturer | None, context: int = CONTEXT) -> Iterator[Scheduler]:
    scheduler = Scheduler(decoder, rows=ROWS, context=context, max_waiting=200, capturer=capturer)
    try:
        yield scheduler
    finally:
        assert scheduler.close(60)


def submit(scheduler: Scheduler, requests: list[TrackedRequest]) -> None:
    scheduler.reserve(sum(len(request.prompts_TD) for request in requests))
    scheduler.submit([request.submittable() for request in requests])


def check(decoder: Decoder, requests: list[TrackedRequest]) -> None:
    for request in requests:
        assert request.ended.wait(60)
        assert request.reasons == ["length"]
        assert request.tokens == request.alone(decoder), request.seed


def test_requests_get_the_tokens_that_they_get_alone(
    maker: RequestMaker, warm_up_capturer: type[GraphCapturer]
) -> None:
    capturer = warm_up_capturer()
    with running(maker.decoder, capturer) as scheduler:
        few, many = maker.few(), maker.many(20)
        submit(scheduler, few)
        check(maker.decoder, few)
        assert capturer.made == BUCKETS
        for start in range(0, 20, 4):  # some arrive while others run
            submit(scheduler, many[start : start + 4])
            many[start].ended.wait(60)
        check(maker.decoder, many)
        assert capturer.made == BUCKETS
        assert scheduler.positions_copied > 0


@torch.no_grad()
def alone(decoder: Decoder, prompt_TD: Tensor, inputs: Tensor) -> Tensor:
    cache = decoder.new_cache(1, len(prompt_TD) + len(inputs))
    states = [prefill(decoder, [prompt_TD], cache)]
    return torch.cat(states + [decode_one(decoder, x[None], cache) for x in inputs])


@torch.no_grad()
def test_free_rows_keep_their_prompts(maker: RequestMaker, warm_up_capturer: type[GraphCapturer]) -> None:
    """Although steps compute free rows too; their prompts are as long as a scheduler accepts."""
    decoder, generator = maker.decoder, torch.Generator().manual_seed(0)
    width = decoder.config.hidden_size
    slots = KVSlots(decoder, ROWS, CONTEXT)
    prefiller, steps = Prefiller(decoder, slots), GraphedSteps(decoder, slots, warm_up_capturer())
    lengths = (MIN_SHARED, 21, 30, 38, CONTEXT - 2, CONTEXT - 1)
    prompts = [torch.randn(length, width, generator=generator) for length in lengths]
    inputs = torch.randn(5, width, generator=generator)
    assert prefiller.add(prompts) == list(range(ROWS))
    for row in (5, 4, 3):
        slots.drop(row)
    held = [BLOCK_SIZE * len(hashes) for hashes in slots.block_hashes]
    assert held[3:] == [36, 92, 92]

    def prefix(row: int) -> list[Tensor]:
        return [buffer[:, row, : held[row]].clone() for buffer in slots.cache.buffers]

    def run(inputs_ID: Tensor) -> list[Tensor]:
        """Hidden states of the rows in use, before the steps and after each."""
        states = [slots.hidden_RD[: len(slots.lengths)].clone()]
        for x in inputs_ID:
            steps.run(x.expand(len(slots.lengths), -1))
            slots.advance()
            states.append(slots.hidden_RD[: len(slots.lengths)].clone())
        return states

    before = [prefix(row) for row in (3, 4, 5)]
    steps.begin()
    slots.cache.positions[3:] = 10**6  # the positions of free rows are arbitrary
    first = run(inputs[:2])  # row 3 is computed too
    added = [torch.cat((prompts[3][:37], prompts[0])), torch.cat((prompts[4][:70], prompts[1]))]
    assert prefiller.add(added) == [3, 4]
    assert prefiller.copied == 36 + 68
    second = run(inputs[2:])  # all six
    assert slots.cache.positions[:5].tolist() == slots.lengths
    for row in range(3):
        states = [*[state[row] for state in first], *[state[row] for state in second[1:]]]
        torch.testing.assert_close(torch.stack(states), alone(decoder, prompts[row], inputs))
    for row in (3, 4):
        states = torch.stack([state[row] for state in second])
        torch.testing.assert_close(states, alone(decoder, added[row - 3], inputs[2:]))
    assert all(torch.equal(a, b) for a, b in zip(prefix(5), before[2], strict=True))
    assert all(torch.equal(a[:, :36], b) for a, b in zip(prefix(3), before[0], strict=True))


def test_free_rows_are_at_the_position_that_reads_least(make_maker: Callable[..., RequestMaker]) -> None:
    slots = KVSlots(make_maker("dense").decoder, ROWS, CONTEXT)
    slots.add([5])
    slots.block_hashes[2] = [b"a", b"b", b"c"]
    slots.cache.positions[:] = torch.tensor([5, 50, 50, 50, 50, 50])
    slots.position_free_rows(4)
    assert slots.cache.positions.tolist() == [5, 0, 12, 0, 50, 50]
    slots.clear()
    slots.position_free_rows(ROWS)
    assert slots.cache.positions.tolist() == [0] * ROWS


def test_long_rows_have_captured_steps_of_their_own(make_maker: Callable[..., RequestMaker]) -> None:
    """Where a step is captured for the number of slots that it reads: one for each 128 of them."""
    maker, capturer = make_maker("latent"), GraphCapturer()
    with running(maker.decoder, capturer, context=300) as scheduler:
        requests = [maker.make(1, 100, 40), maker.make(2, 240, 50)]
        for request, made in zip(requests, (2, 3), strict=True):  # up to 128 and 256; 256 again and 320
            submit(scheduler, [request])
            check(maker.decoder, [request])
            assert capturer.made == made


def test_moved_weights_are_captured_anew(make_maker: Callable[..., RequestMaker]) -> None:
    maker, capturer = make_maker("dense"), GraphCapturer()
    weight = maker.decoder.norm.weight
    with running(maker.decoder, capturer) as scheduler:
        for made in (1, 2):
            requests = [maker.make(1, 12, 6)]
            submit(scheduler, requests)
            check(maker.decoder, requests)
            assert capturer.made == made
            weight.data = -weight.data


def test_a_capture_that_fails_ends_only_its_own_requests(
    make_maker: Callable[..., RequestMaker], warm_up_capturer: Any
) -> None:
    class FailingCapturer(warm_up_capturer):
        def __call__(self, work: Work) -> Work:
            work()
            if self.made == 0:
                self.made += 1
                raise RuntimeError("out of memory")
            return super().__call__(work)

    maker = make_maker("dense")
    with running(maker.decoder, FailingCapturer()) as scheduler:
        failed, good = maker.few(), maker.few()
        submit(scheduler, failed)
        assert all(request.ended.wait(60) for request in failed)
        assert [request.reasons for request in failed] == [["error"]] * ROWS
        submit(scheduler, good)
        check(maker.decoder, good)


@pytest.mark.parametrize("device", DEVICES)
def test_steps_are_captured_by_default_on_cuda(device: str, make_maker: Callable[..., RequestMaker]) -> None:
    """Unless the decoder's `capture` is False, as in generation."""
    decoder = make_maker("dense", device).decoder
    for capture in (None, False):
        decoder.capture = capture
        with running(decoder, None) as scheduler:
            assert (scheduler.graphed is not None) == (device == "cuda" and capture is None)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="the device runs the kernels")
def test_steps_with_triton_kernels(
    make_maker: Callable[..., RequestMaker],
    warm_up_capturer: type[GraphCapturer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the attention that reads positions on the device, and the sampling kernel."""
    pytest.importorskip("triton")
    monkeypatch.setattr(decode_step, "load_kernels", lambda device: import_kernels())
    maker, capturer = make_maker("dense"), warm_up_capturer()
    requests = [maker.make(seed, length, new) for seed, length, new in ((1, 9, 6), (2, 30, 4), (3, 70, 3))]
    with running(maker.decoder, capturer) as scheduler:
        assert scheduler.graphed.decoding.span_independent
        submit(scheduler, requests)
        check(maker.decoder, requests)
        arrivals = scheduler._slots.cache.arrivals
        assert scheduler._slots.view(0, 2, 0).arrivals is arrivals
    assert not arrivals.any()
    assert capturer.made == 3  # four rows, two, one


@on_cuda
@pytest.mark.parametrize("name", MODELS)
def test_fifty_requests_capture_little_on_cuda(name: str, make_maker: Callable[..., RequestMaker]) -> None:
    maker = make_maker(name, "cuda")
    with running(maker.decoder, None) as scheduler:
        few, many = maker.few(), maker.many(50)
        submit(scheduler, few)
        check(maker.decoder, few)
        assert scheduler.graphed is not None
        assert scheduler.graphed.capturer.made == BUCKETS
        for start in range(0, 50, 5):
            submit(scheduler, many[start : start + 5])
            many[start].ended.wait(60)
        check(maker.decoder, many)
        assert scheduler.graphed.capturer.made == BUCKETS
