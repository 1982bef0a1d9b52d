"""Captured steps on CUDA: the tokens of a request are the same in any company, and little is captured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from bifrons.blocks.engine.plain_runner import PlainRunner
from bifrons.blocks.engine.scheduler import Scheduler
from bifrons.blocks.graphs.cuda_graphs import CudaGraphCapturer, is_row_invariant
from bifrons.blocks.graphs.graph_runner import GraphRunner
from bifrons.blocks.kernels.batch_invariant import use_batch_invariant_libraries
from bifrons.blocks.sampling.request import Request, SamplingParams
from bifrons.blocks.structured_output import OutputFormat
from bifrons.blocks.token_masks import TokenVocabulary
from tokenizers import Tokenizer

from ...models import SHAPES_VL2

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
MODELS = ["dense", "dense-wide", "experts", "latent", "latent-noaux"]
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.fixture(params=MODELS)
def load(request: pytest.FixtureRequest, small_model, requests_of) -> Any:
    """`load(dtype)`: requests of a model on CUDA."""
    return lambda dtype: requests_of(small_model(request.param, "cuda", dtype))


def batches(requests: Sequence[Request], size: int) -> list[Sequence[Request]]:
    return [requests[start : start + size] for start in range(0, len(requests), size)]


@HALVES
def test_tokens_are_the_same_in_any_company(load: Any, dtype: torch.dtype) -> None:
    assert use_batch_invariant_libraries(torch.device("cuda"))
    maker = load(dtype)
    assert is_row_invariant(maker.decoder)
    scheduler, new = Scheduler(maker.decoder), 24
    assert isinstance(scheduler.runner, GraphRunner)
    alone = [maker.run(scheduler, [request])[0] for request in maker.mixed(new)]
    for size in (2, 3, 5):
        found = [maker.run(scheduler, part) for part in batches(maker.mixed(new), size)]
        assert [tokens for part in found for tokens in part] == alone, f"batches of {size}"
    # Under load: long prompts are computed beside them, rows come and go, and all wait for others.
    busy = Scheduler(maker.decoder, rows=24, context=512)
    watched = maker.mixed(new)
    load_of = [
        maker.answer(30 + 29 * seed % 400, SamplingParams(1.0), seed, 5 + seed % 30) for seed in range(60)
    ]
    for index, others in enumerate(batches(load_of, 5)):
        busy.submit([*watched[index : index + 1], *others])
        for _ in range(3):
            busy.step()
    maker.finish(busy)
    assert [out.tokens for out in maker.outs(watched)] == alone


def test_prompts_are_the_same_in_chunks(load: Any) -> None:
    maker = load(torch.bfloat16)
    found = []
    for chunk in (None, 7, 32, 100, 333):
        request = maker.answer(450, SamplingParams(1.0), 1, 12, prefill_chunk=chunk)
        found += maker.run(Scheduler(maker.decoder), [request])
    assert found == [found[0]] * 5


def test_warm_up_captures_what_requests_use(load: Any) -> None:
    """Repetition penalties too, and with them."""
    maker = load(torch.float32)
    requests = [maker.answer(9, SamplingParams(0.0, repetition_penalty=5.0), seed, 12) for seed in (1, 2)]
    expected = maker.alone(requests)
    capturer = CudaGraphCapturer(maker.decoder.device)
    scheduler = Scheduler(maker.decoder, rows=4, context=64, capturer=capturer)
    scheduler.warm_up([(maker.text_head, request.sampling) for request in requests[:1]])
    made = capturer.made
    assert maker.run(scheduler, requests) == expected
    assert all(len(set(tokens)) == 12 for tokens in expected)
    assert capturer.made == made


def test_float32_tokens_are_those_of_the_plain_loop(load: Any) -> None:
    maker = load(torch.float32)
    requests = maker.mixed(16)
    expected = maker.alone(requests)
    scheduler = Scheduler(maker.decoder)
    assert isinstance(scheduler.runner, GraphRunner)
    assert maker.run(scheduler, requests) == expected


def test_changing_requests_capture_nothing_new_and_leak_nothing(load: Any) -> None:
    maker = load(torch.bfloat16)
    capturer = CudaGraphCapturer(maker.decoder.device)
    scheduler = Scheduler(maker.decoder, rows=12, context=256, capturer=capturer)

    def requests(count: int, round_: int) -> list[Request]:
        sampling = SamplingParams(0.5 + round_ / 10)
        return [maker.answer(3 + round_ % 9, sampling, round_ + n, 3 + n) for n in range(count)]

    for count in range(1, 13):
        maker.run(scheduler, requests(count, 0))
    made = capturer.made
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for round_ in range(1, 40):
        maker.run(scheduler, requests(1 + 7 * round_ % 12, round_))
    torch.cuda.synchronize()
    assert capturer.made == made
    assert torch.cuda.memory_allocated() <= before


def test_steps_are_captured_unless_the_decoder_says_no(load: Any) -> None:
    decoder = load(torch.bfloat16).decoder
    assert isinstance(Scheduler(decoder).runner, GraphRunner)
    decoder.capture = False
    assert isinstance(Scheduler(decoder).runner, PlainRunner)


def test_formats_penalties_and_biases_are_those_of_the_plain_runner(load: Any) -> None:
    """Beside free requests, whose tokens stay the same; rows that overflow leave nothing behind."""
    maker = load(torch.float32)
    eos_id, formats = 612, [OutputFormat.json_object(), OutputFormat.regex("[0-9]{4}")]
    file = Path(SHAPES_VL2) / "tokenizer.json"
    rows = maker.decoder.config.vocab_size
    vocabulary = TokenVocabulary(Tokenizer.from_file(str(file)), rows, eos_id) if rows > eos_id else None

    def make() -> list[Request]:
        tuned = SamplingParams(0.9, 40, min_p=0.02, presence_penalty=1.0, frequency_penalty=0.5)
        biased = SamplingParams(1.0, logit_bias={5: 4.0, 6: -100.0})
        matchers = [one.matcher(vocabulary, 20) for one in formats] if vocabulary else []
        held = [
            maker.answer(9, SamplingParams(float(i)), i, 20, eos_id=eos_id, matcher=matcher)
            for i, matcher in enumerate(matchers)
        ]
        return [*held, maker.answer(7, tuned, 5, 20), maker.answer(7, biased, 6, 20), *maker.mixed(20)]

    plain = Scheduler(maker.decoder)
    plain.runner = PlainRunner(maker.decoder, None, maker.decoder.config.max_positions)
    expected = maker.run(plain, make())
    scheduler = Scheduler(maker.decoder)
    assert isinstance(scheduler.runner, GraphRunner)
    for value in (torch.nan, torch.inf):
        broken = maker.answer(40, SamplingParams(1.0), 9, 8)
        broken.prompts_TD[0][3] = value
        found = maker.run(scheduler, [broken, *make()])
        assert found == [[], *expected]
        assert "not numbers" in str(broken.error)
