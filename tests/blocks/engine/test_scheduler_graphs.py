"""A scheduler whose steps are recorded: CUDA graphs on CUDA, and everything but them on the CPU."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
import torch
from bifrons.blocks.engine.generate import plain_steps
from bifrons.blocks.engine.graph_buffers import GraphedSteps
from bifrons.blocks.engine.prefill import BLOCK, MIN_SHARED, Prefiller, decode_one, prefill
from bifrons.blocks.engine.request import GenerationBatch, Request, SamplingParams, TokenHead
from bifrons.blocks.engine.scheduler import Scheduler
from bifrons.blocks.graphs import decode_step
from bifrons.blocks.graphs.cuda_graphs import GraphCapturer, Work
from bifrons.blocks.graphs.decode_step import import_kernels
from bifrons.blocks.model.decoder import Decoder
from bifrons.blocks.model.kv_slots import KVSlots
from bifrons.janus.pipeline import JanusPipeline
from bifrons.vl2.pipeline import VL2Pipeline
from torch import Tensor

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=on_cuda)]
MODELS = ["janus-mini", "vl2-mini-mha", "vl2-mini-mla", "vl2-mini-noaux"]
ROWS, CONTEXT = 6, 96
BUCKETS = 4  # of six rows: 1, 2, 4 and all


class Twice(GraphCapturer):
    """Runs the work while it is recorded, as graphs' capturer does to warm up."""

    def __call__(self, work: Work) -> Work:
        work()
        return super().__call__(work)


@dataclass
class Wish:
    """A request to be, and what came of it."""

    head: TokenHead
    prompts_TD: list[Tensor]
    sampling: SamplingParams
    seed: int
    new: int
    tokens: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def request(self) -> Request:
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
class Wisher:
    """Wishes of a model: every third is a guided picture where the model paints, the others are answers."""

    model: torch.nn.Module

    @property
    def decoder(self) -> Decoder:
        return self.model.decoder  # type: ignore[return-value]

    def wish(self, seed: int, length: int, new: int) -> Wish:
        model, generator = self.model, torch.Generator().manual_seed(seed % 4)
        ids = torch.randint(9, 250, (2, length), generator=generator).to(self.decoder.device)
        prompts = [model.embed_text(row).detach() for row in ids]
        sampling = SamplingParams(*((0.0,), (1.0,), (0.7, 0, 0.9), (1.0, 20))[seed % 4])
        if seed % 3 == 0 and hasattr(model, "embed_codes"):
            head = TokenHead(model.embed_codes, model.image_logits)
            sampling = replace(sampling, guidance_scale=3.0)
            return Wish(head, [prompts[0], prompts[1][: length // 2]], sampling, seed, new)
        return Wish(TokenHead(model.embed_text, model.text_logits), prompts[:1], sampling, seed, new)

    def few(self) -> list[Wish]:
        """Six answers that end one after the other, so that every bucket comes up."""
        wishes = [self.wish(3 * i + 1, 9 + 7 * (i % 3), 3 * i + 3) for i in range(ROWS)]
        assert all(len(wish.prompts_TD) == 1 for wish in wishes)
        return wishes

    def many(self, count: int) -> list[Wish]:
        return [self.wish(i, 20 + 9 * (i % 4), 2 + 5 * i % 17) for i in range(count)]


@pytest.fixture(scope="module")
def load(request) -> Callable[[str, str], Wisher]:
    def make(name: str, device: str) -> Wisher:
        family = JanusPipeline if name.startswith("janus") else VL2Pipeline
        folder = request.config.rootpath / "tests" / "data" / name
        return Wisher(family.from_pretrained(folder, device, "float32", progress=False).model)

    return make


@pytest.fixture(params=MODELS)
def wisher(request, load) -> Wisher:
    return load(request.param, "cpu")


@contextmanager
def running(decoder: Decoder, capturer: GraphCapturer | None, context: int = CONTEXT) -> Iterator[Scheduler]:
    scheduler = Scheduler(decoder, rows=ROWS, context=context, max_waiting=200, capturer=capturer)
    try:
        yield scheduler
    finally:
        assert scheduler.close(60)


def submit(scheduler: Scheduler, wishes: list[Wish]) -> None:
    scheduler.reserve(sum(len(wish.prompts_TD) for wish in wishes))
    scheduler.submit([wish.request() for wish in wishes])


def check(decoder: Decoder, wishes: list[Wish]) -> None:
    for wish in wishes:
        assert wish.ended.wait(60)
        assert wish.reasons == ["length"]
        assert wish.tokens == wish.alone(decoder), wish.seed


def test_jobs_get_what_they_get_alone(wisher: Wisher) -> None:
    capturer = Twice()
    with running(wisher.decoder, capturer) as scheduler:
        few, many = wisher.few(), wisher.many(20)
        submit(scheduler, few)
        check(wisher.decoder, few)
        assert capturer.made == BUCKETS
        for start in range(0, 20, 4):  # some come while others run
            submit(scheduler, many[start : start + 4])
            many[start].ended.wait(60)
        check(wisher.decoder, many)
        assert capturer.made == BUCKETS
        assert scheduler.positions_copied > 0


@torch.no_grad()
def alone(decoder: Decoder, prompt_TD: Tensor, inputs: Tensor) -> Tensor:
    cache = decoder.new_cache(1, len(prompt_TD) + len(inputs))
    states = [prefill(decoder, [prompt_TD], cache)]
    return torch.cat(states + [decode_one(decoder, x[None], cache) for x in inputs])


@torch.no_grad()
def test_free_rows_keep_what_they_hold(wisher: Wisher) -> None:
    """Free rows that are computed hold prompts of up to the most positions that a scheduler takes."""
    decoder, generator = wisher.decoder, torch.Generator().manual_seed(0)
    width = decoder.config.hidden_size
    slots = KVSlots(decoder, ROWS, CONTEXT)
    prefiller, steps = Prefiller(decoder, slots), GraphedSteps(decoder, slots, Twice())
    lengths = (MIN_SHARED, 21, 30, 38, CONTEXT - 2, CONTEXT - 1)
    prompts = [torch.randn(length, width, generator=generator) for length in lengths]
    inputs = torch.randn(5, width, generator=generator)
    assert prefiller.add(prompts) == list(range(ROWS))
    for place in (5, 4, 3):
        slots.drop(place)
    held = [BLOCK * len(marks) for marks in slots.marks]
    assert held[3:] == [36, 92, 92]

    def beginnings(row: int) -> list[Tensor]:
        return [buffer[:, row, : held[row]].clone() for buffer in slots.cache.buffers]

    def run(some: Tensor) -> list[Tensor]:
        """Hidden states of the rows in use, before and after a step each."""
        states = [slots.hidden_RD[: len(slots.lengths)].clone()]
        for x in some:
            steps.run(x.expand(len(slots.lengths), -1))
            slots.advance()
            states.append(slots.hidden_RD[: len(slots.lengths)].clone())
        return states

    before = [beginnings(row) for row in (3, 4, 5)]
    steps.begin()
    slots.cache.positions[3:] = 10**6  # nothing is known of where free rows stand
    first = run(inputs[:2])  # row 3 is computed too
    added = [torch.cat((prompts[3][:37], prompts[0])), torch.cat((prompts[4][:70], prompts[1]))]
    assert prefiller.add(added) == [3, 4]
    assert prefiller.copied == 36 + 68
    second = run(inputs[2:])  # all six
    assert slots.cache.positions[:5].tolist() == slots.lengths
    for row in range(3):
        found = [*[state[row] for state in first], *[state[row] for state in second[1:]]]
        torch.testing.assert_close(torch.stack(found), alone(decoder, prompts[row], inputs))
    for row in (3, 4):
        found = torch.stack([state[row] for state in second])
        torch.testing.assert_close(found, alone(decoder, added[row - 3], inputs[2:]))
    assert all(torch.equal(a, b) for a, b in zip(beginnings(5), before[2], strict=True))
    assert all(torch.equal(a[:, :36], b) for a, b in zip(beginnings(3), before[0], strict=True))


def test_parked_rows_stand_where_they_read_least(load: Callable[[str, str], Wisher]) -> None:
    slots = KVSlots(load("janus-mini", "cpu").decoder, ROWS, CONTEXT)
    slots.add([5])
    slots.marks[2] = [b"a", b"b", b"c"]
    slots.cache.positions[:] = torch.tensor([5, 50, 50, 50, 50, 50])
    slots.park(4)
    assert slots.cache.positions.tolist() == [5, 0, 12, 0, 50, 50]
    slots.clear()
    slots.park(ROWS)
    assert slots.cache.positions.tolist() == [0] * ROWS


def test_long_rows_make_recordings_of_their_own(load: Callable[[str, str], Wisher]) -> None:
    """Where a step must know how many slots are read: for each 128 of them."""
    wisher, capturer = load("vl2-mini-mla", "cpu"), GraphCapturer()
    with running(wisher.decoder, capturer, context=300) as scheduler:
        wishes = [wisher.wish(1, 100, 40), wisher.wish(2, 240, 50)]
        for wish, made in zip(wishes, (2, 3), strict=True):  # up to 128 and 256; 256 again and 320
            submit(scheduler, [wish])
            check(wisher.decoder, [wish])
            assert capturer.made == made


def test_moved_weights_make_new_recordings(load: Callable[[str, str], Wisher]) -> None:
    wisher, capturer = load("janus-mini", "cpu"), GraphCapturer()
    weight = wisher.decoder.norm.weight
    with running(wisher.decoder, capturer) as scheduler:
        for made in (1, 2):
            wishes = [wisher.wish(1, 12, 6)]
            submit(scheduler, wishes)
            check(wisher.decoder, wishes)
            assert capturer.made == made
            weight.data = -weight.data


def test_a_recording_that_fails_ends_its_jobs_alone(load: Callable[[str, str], Wisher]) -> None:
    class Failing(Twice):
        def __call__(self, work: Work) -> Work:
            work()
            if self.made == 0:
                self.made += 1
                raise RuntimeError("out of memory")
            return super().__call__(work)

    wisher = load("janus-mini", "cpu")
    with running(wisher.decoder, Failing()) as scheduler:
        bad, good = wisher.few(), wisher.few()
        submit(scheduler, bad)
        assert all(wish.ended.wait(60) for wish in bad)
        assert [wish.reasons for wish in bad] == [["error"]] * ROWS
        submit(scheduler, good)
        check(wisher.decoder, good)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_recorded_by_default(device: str, load: Callable[[str, str], Wisher]) -> None:
    """What generation captures: on CUDA, unless the decoder is told not to."""
    decoder = load("janus-mini", device).decoder
    for capture in (None, False):
        decoder.capture = capture
        with running(decoder, None) as scheduler:
            assert (scheduler.graphed is not None) == (device == "cuda" and capture is None)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="the device runs the kernels")
def test_through_kernels(load: Callable[[str, str], Wisher], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the attention that goes by the positions on the device, and the draw."""
    pytest.importorskip("triton")
    monkeypatch.setattr(decode_step, "load_kernels", lambda device: import_kernels())
    wisher, capturer = load("janus-mini", "cpu"), Twice()
    wishes = [wisher.wish(seed, length, new) for seed, length, new in ((1, 9, 6), (2, 30, 4), (3, 70, 3))]
    with running(wisher.decoder, capturer) as scheduler:
        assert scheduler.graphed.decoding.by_position
        submit(scheduler, wishes)
        check(wisher.decoder, wishes)
        arrivals = scheduler._slots.cache.arrivals
        assert scheduler._slots.view(0, 2, 0).arrivals is arrivals
    assert not arrivals.any()
    assert capturer.made == 3  # four rows, two, one


@on_cuda
@pytest.mark.parametrize("name", MODELS)
def test_fifty_jobs_capture_little_on_cuda(name: str, load: Callable[[str, str], Wisher]) -> None:
    wisher = load(name, "cuda")
    with running(wisher.decoder, None) as scheduler:
        few, many = wisher.few(), wisher.many(50)
        submit(scheduler, few)
        check(wisher.decoder, few)
        assert scheduler.graphed is not None
        assert scheduler.graphed.capturer.made == BUCKETS
        for start in range(0, 50, 5):
            submit(scheduler, many[start : start + 5])
            many[start].ended.wait(60)
        check(wisher.decoder, many)
        assert scheduler.graphed.capturer.made == BUCKETS
