"""Generation by captured graphs against the plain loop; on the CPU a replay runs the captured work again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bifrons.blocks.engine import graph_generation
from bifrons.blocks.engine.generate import generate_all, plain_steps
from bifrons.blocks.engine.graph_generation import captured_steps, captured_tokens, graph_pool_of
from bifrons.blocks.engine.request import GenerationBatch, SamplingParams, TokenHead
from bifrons.blocks.engine.sampling import interleave
from bifrons.blocks.graphs import decode_step
from bifrons.blocks.graphs.cuda_graphs import GraphCapturer, bucket, bucket_below
from bifrons.blocks.model.decoder import Decoder
from torch import Tensor

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=on_cuda)]
GREEDY, GUIDED = SamplingParams(0.0), SamplingParams(guidance_scale=3.0)


@pytest.fixture(params=DEVICES)
def model(request: pytest.FixtureRequest, small_model: Callable[..., Any]) -> Any:
    """A model in float32 with an image head."""
    return small_model("dense-wide", request.param)


def image_batch(
    model: Any, count: int, sampling: SamplingParams, steps: int = 12, seed: int = 1
) -> GenerationBatch:
    """Images from prompts of several lengths, which the seed chooses; `steps` codes of each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [(11, 18, 10, 10, 13)[(seed + index) % 5] for index in range(count)]
    ids = [torch.randint(590, (length,), generator=generator) for length in lengths]
    uncond = [torch.full_like(row, 7) for row in ids] if sampling.rows_each == 2 else None
    rows = [model.embed_text(row.to(model.decoder.device)) for row in interleave(ids, uncond)]
    head = TokenHead(model.embed_codes, model.image_logits)
    return GenerationBatch(rows, head, sampling, range(seed, seed + count), steps)


def plain(decoder: Decoder, batch: GenerationBatch) -> Tensor:
    with torch.no_grad():
        return torch.stack(list(plain_steps(decoder, batch)), dim=1).cpu()


def test_buckets() -> None:
    assert [bucket(count) for count in (1, 2, 3, 5, 8, 9, 13, 17, 25)] == [1, 2, 4, 8, 8, 12, 16, 24, 32]
    assert [bucket(count, 64) for count in (1, 65, 200, 600, 800)] == [64, 128, 256, 768, 1024]
    for count in range(1, 200):
        assert bucket(bucket(count)) == bucket(count) >= count
        assert bucket_below(count) <= count < 2 * bucket_below(count)


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        GUIDED,
        SamplingParams(0.7, top_p=0.8),
        SamplingParams(top_k=9, top_p=0.9, guidance_scale=2.0),
    ],
)
def test_tokens_are_those_of_the_plain_loop(model: Any, sampling: SamplingParams) -> None:
    decoder = model.decoder
    for count in (1, 3):
        batch = image_batch(model, count, sampling)
        expected = plain(decoder, batch)
        assert torch.equal(captured_tokens(decoder, batch), expected)
        assert torch.equal(torch.stack(list(captured_steps(decoder, batch)), dim=1), expected)


def test_long_generations_are_the_same(model: Any) -> None:
    batch = image_batch(model, 2, GUIDED, 256)
    expected = plain(model.decoder, batch)
    assert torch.equal(captured_tokens(model.decoder, batch), expected)


def test_one_set_of_buffers_serves_all_prompts_seeds_and_parameters(model: Any) -> None:
    decoder, pool = model.decoder, graph_pool_of(model.decoder)
    for seed in range(10):
        sampling = SamplingParams(0.5 + seed / 10, guidance_scale=1.5 + seed)
        batch = image_batch(model, 3 + seed % 2, sampling, 4 + seed, seed)
        assert torch.equal(captured_tokens(decoder, batch), plain(decoder, batch))
    span_independent = pool.free[0].decoding.span_independent
    spans = 1 if span_independent else 1 + (batch.longest + 13) // decode_step.SPAN_MULTIPLE
    assert len(pool.free) == 1
    assert pool.capturer.made == 1 + spans  # of the prompts and of the step
    list(captured_steps(decoder, image_batch(model, 4, SamplingParams(top_k=5, guidance_scale=3.0), 4)))
    assert pool.capturer.made == 2 + spans


def test_stopping_early_leaves_the_buffers_usable(model: Any) -> None:
    decoder = model.decoder
    batch = image_batch(model, 2, GUIDED)
    expected = plain(decoder, batch)
    for stop in (1, 2, 5):
        steps = captured_steps(decoder, batch)
        tokens = torch.stack([next(steps) for _ in range(stop)], dim=1)
        steps.close()
        assert torch.equal(tokens, expected[:, :stop])
    assert torch.equal(captured_tokens(decoder, batch), expected)
    assert len(graph_pool_of(decoder).free) == 1


def test_generations_side_by_side(model: Any) -> None:
    decoder = model.decoder
    batches = [image_batch(model, 1, GUIDED, seed=seed) for seed in (1, 2)]
    both = zip(*[captured_steps(decoder, batch) for batch in batches], strict=True)
    generated = [torch.stack(steps, dim=1) for steps in zip(*both, strict=True)]
    for batch, tokens in zip(batches, generated, strict=True):
        assert torch.equal(tokens, plain(decoder, batch))
    assert len(graph_pool_of(decoder).free) == 2


def test_few_buffers_are_pooled(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_generation, "_MAX_BUFFERS", 4)
    decoder = model.decoder
    for count in (1, 2, 4, 5, 9, 1):
        captured_tokens(decoder, image_batch(model, count, GUIDED, 2))
    pool = graph_pool_of(decoder)
    assert len(pool.free) == 4
    assert pool.bytes > 0
    pool.clear()
    assert pool.bytes == 0


def test_moved_weights_are_captured_anew(model: Any) -> None:
    decoder = model.decoder
    batch = image_batch(model, 1, GREEDY)
    captured_tokens(decoder, batch)
    made = graph_pool_of(decoder).capturer.made
    weight = decoder.norm.weight
    before = weight.data
    try:
        weight.data = -before
        assert torch.equal(captured_tokens(decoder, batch), plain(decoder, batch))
        assert graph_pool_of(decoder).capturer.made == 2 * made
    finally:
        weight.data = before


def test_works_in_and_after_inference_mode(model: Any) -> None:
    decoder = model.decoder
    with torch.inference_mode():
        batch = image_batch(model, 1, GUIDED)
        first = captured_tokens(decoder, batch)
    assert torch.equal(captured_tokens(decoder, image_batch(model, 1, GUIDED)), first)


def test_warm_up_before_a_capture_leaves_no_trace(model: Any, warm_up_capturer: type[GraphCapturer]) -> None:
    if model.decoder.device.type == "cuda":
        pytest.skip("the capturer of CUDA graphs warms up itself")
    decoder = model.decoder
    graph_pool_of(decoder).capturer = warm_up_capturer()
    batch = image_batch(model, 3, SamplingParams(top_k=40, guidance_scale=2.0))
    assert torch.equal(captured_tokens(decoder, batch), plain(decoder, batch))


@pytest.fixture
def calls(model: Any) -> Callable[[int], None]:
    """`calls(n)` generates with changing prompts, batch sizes, seeds and sampling parameters."""

    def run(seed: int) -> None:
        sampling = SamplingParams(0.5 + seed % 3, guidance_scale=2.0 + seed % 5)
        generate_all(model.decoder, image_batch(model, 1 + seed % 4, sampling, 6, seed))

    return run


@on_cuda
def test_fifty_calls_capture_little_and_leak_nothing(model: Any, calls: Callable[[int], None]) -> None:
    if model.decoder.device.type != "cuda":
        pytest.skip("this is about CUDA graphs")
    decoder = model.decoder
    for seed in range(12):
        calls(seed)
    made = graph_pool_of(decoder).capturer.made
    assert made == 6  # prompts and steps of 1, 2 and 4 images
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for seed in range(50):
        calls(seed)
    torch.cuda.synchronize()
    assert graph_pool_of(decoder).capturer.made == made
    assert torch.cuda.memory_allocated() <= before


def test_batch_sizes_are_captured_once(model: Any) -> None:
    decoder, sizes = model.decoder, (1, 2, 3, 5, 8, 11, 16, 24, 32)
    for size in sizes:
        generate_all(decoder, image_batch(model, size, SamplingParams(guidance_scale=2.0), 2))
    made = graph_pool_of(decoder).capturer.made
    for size in reversed(sizes):
        generate_all(decoder, image_batch(model, size, GUIDED, 3, seed=size))
    assert graph_pool_of(decoder).capturer.made == made
