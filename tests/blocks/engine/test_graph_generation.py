"""Captured generation against the plain loop; its graphs on CUDA, and everything but them on the CPU."""

import gc
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from bifrons.blocks.engine import generate, graph_generation
from bifrons.blocks.engine.generate import generate_all, plain_steps
from bifrons.blocks.engine.graph_generation import captured_steps, captured_tokens, graph_pool_of
from bifrons.blocks.engine.prefill import decode_one, prefill
from bifrons.blocks.engine.request import GenerationBatch
from bifrons.blocks.engine.sampling import expand_rows
from bifrons.blocks.graphs import decode_step
from bifrons.blocks.graphs.cuda_graphs import GraphCapturer, Work, bucket, bucket_below
from bifrons.blocks.model.decoder import Decoder
from bifrons.janus.image_generation import ImageGenerationOptions, image_generation_batch
from bifrons.janus.pipeline import JanusPipeline
from bifrons.vl2.pipeline import VL2Pipeline
from PIL import Image
from torch import Tensor

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=on_cuda)]
TEXTS = ("a red circle", "a photo of two blue squares and a green star", "x", "three stars", "a big circle")


@pytest.fixture(scope="module")
def painters() -> dict[str, JanusPipeline]:
    return {}


@pytest.fixture(params=DEVICES)
def painter(request: pytest.FixtureRequest, painters: dict[str, JanusPipeline]) -> JanusPipeline:
    """janus-nano in float32; its buffers start anew in each test."""
    device = request.param
    if device not in painters:
        painters[device] = JanusPipeline.from_pretrained(
            "janus-nano", device, "float32", parts="paint", progress=False
        )
    graph_generation._pools.pop(painters[device].model.decoder, None)
    return painters[device]


def painting(
    pipe: JanusPipeline, count: int, options: ImageGenerationOptions, steps: int = 12, seed: int = 1
) -> GenerationBatch:
    pairs = [pipe.processor.generation_ids(TEXTS[(seed + index) % len(TEXTS)]) for index in range(count)]
    cond, uncond = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    seeds = range(seed, seed + count)
    batch = image_generation_batch(pipe.model, cond, uncond if options.guided else None, options, seeds)
    return replace(batch, max_new_tokens=steps)


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
    "options",
    [
        ImageGenerationOptions(1.0, temperature=0.0),
        ImageGenerationOptions(3.0),
        ImageGenerationOptions(1.0, temperature=0.7, top_p=0.8),
        ImageGenerationOptions(2.0, top_k=9, top_p=0.9),
    ],
)
def test_tokens_are_those_of_the_plain_loop(painter: JanusPipeline, options: ImageGenerationOptions) -> None:
    decoder = painter.model.decoder
    for count in (1, 3):
        batch = painting(painter, count, options)
        wanted = plain(decoder, batch)
        assert torch.equal(captured_tokens(decoder, batch), wanted)
        assert torch.equal(torch.stack(list(captured_steps(decoder, batch)), dim=1), wanted)


def test_whole_picture_is_the_same(painter: JanusPipeline) -> None:
    batch = painting(painter, 2, ImageGenerationOptions(3.0), painter.model.config.num_codes)
    wanted = plain(painter.model.decoder, batch)
    assert torch.equal(captured_tokens(painter.model.decoder, batch), wanted)


def test_one_station_serves_prompts_seeds_and_numbers(painter: JanusPipeline) -> None:
    decoder, pool = painter.model.decoder, graph_pool_of(painter.model.decoder)
    for seed in range(10):
        options = ImageGenerationOptions(1.5 + seed, temperature=0.5 + seed / 10)
        batch = painting(painter, 3 + seed % 2, options, 4 + seed, seed)
        assert torch.equal(captured_tokens(decoder, batch), plain(decoder, batch))
    span_independent = pool.free[0].decoding.span_independent
    spans = 1 if span_independent else 1 + (batch.longest + 13) // decode_step.SPAN_MULTIPLE
    assert len(pool.free) == 1
    assert pool.capturer.made == 1 + spans  # the prompts' and the step's
    list(captured_steps(decoder, painting(painter, 4, ImageGenerationOptions(3.0, top_k=5), 4)))
    assert pool.capturer.made == 2 + spans


def test_stopping_early_leaves_the_station_usable(painter: JanusPipeline) -> None:
    decoder = painter.model.decoder
    batch = painting(painter, 2, ImageGenerationOptions(3.0))
    wanted = plain(decoder, batch)
    for stop in (1, 2, 5):
        steps = captured_steps(decoder, batch)
        found = torch.stack([next(steps) for _ in range(stop)], dim=1)
        steps.close()
        assert torch.equal(found, wanted[:, :stop])
    assert torch.equal(captured_tokens(decoder, batch), wanted)
    assert len(graph_pool_of(decoder).free) == 1


def test_generations_side_by_side(painter: JanusPipeline) -> None:
    decoder = painter.model.decoder
    batches = [painting(painter, 1, ImageGenerationOptions(3.0), seed=seed) for seed in (1, 2)]
    both = zip(*[captured_steps(decoder, batch) for batch in batches], strict=True)
    found = [torch.stack(steps, dim=1) for steps in zip(*both, strict=True)]
    for batch, tokens in zip(batches, found, strict=True):
        assert torch.equal(tokens, plain(decoder, batch))
    assert len(graph_pool_of(decoder).free) == 2


def test_few_stations_are_kept(painter: JanusPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_generation, "_MAX_BUFFERS", 4)
    decoder = painter.model.decoder
    for count in (1, 2, 4, 5, 9, 1):
        captured_tokens(decoder, painting(painter, count, ImageGenerationOptions(3.0), 2))
    pool = graph_pool_of(decoder)
    assert len(pool.free) == 4
    assert pool.bytes > 0
    pool.clear()
    assert pool.bytes == 0


def test_moved_weights_make_new_decode_step(painter: JanusPipeline) -> None:
    decoder = painter.model.decoder
    batch = painting(painter, 1, ImageGenerationOptions(1.0, temperature=0.0))
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


def test_works_in_and_after_inference_mode(painter: JanusPipeline) -> None:
    decoder = painter.model.decoder
    with torch.inference_mode():
        batch = painting(painter, 1, ImageGenerationOptions(3.0))
        first = captured_tokens(decoder, batch)
    assert torch.equal(captured_tokens(decoder, painting(painter, 1, ImageGenerationOptions(3.0))), first)


class Twice(GraphCapturer):
    """Runs the work while it is recorded, as graphs' capturer does to warm up."""

    def __call__(self, work: Work) -> Work:
        work()
        return super().__call__(work)


@pytest.mark.parametrize("name", ["vl2-mini-mha", "vl2-mini-mla", "vl2-mini-noaux"])
def test_answers_are_those_of_the_plain_loop(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.config.rootpath / "tests" / "data" / name
    pipe = VL2Pipeline.from_pretrained(folder, "cpu", progress=False)
    picture = Image.new("RGB", (80, 60), (200, 30, 30))
    questions = ((picture, "What is this?"), ([], "And what colour has it?"))
    conversations = [pipe.question_messages(*question) for question in questions]
    settings = [
        {"temperature": 0.0},
        {"temperature": 0.9, "top_p": 0.9, "seed": 3},
        {"temperature": 0.0, "repetition_penalty": 1.5, "prefill_chunk": 16},
    ]
    wanted = [pipe.chat_batch(conversations, 20, **given) for given in settings]
    graph_pool_of(pipe.model.decoder).capturer = Twice()
    monkeypatch.setattr(generate, "captures", lambda decoder, head: True)
    assert [pipe.chat_batch(conversations, 20, **given) for given in settings] == wanted
    assert "".join(pipe.ask(picture, "What is this?", 20, stream=True)).strip() == wanted[0][0]
    assert graph_pool_of(pipe.model.decoder).capturer.made > 3


def test_recording_leaves_no_trace(painter: JanusPipeline) -> None:
    if painter.device.type == "cuda":
        pytest.skip("graphs are recorded by their own capturer")
    decoder = painter.model.decoder
    graph_pool_of(decoder).capturer = Twice()
    batch = painting(painter, 3, ImageGenerationOptions(2.0, top_k=40))
    assert torch.equal(captured_tokens(decoder, batch), plain(decoder, batch))


@pytest.fixture
def calls(painter: JanusPipeline) -> Callable[[int], None]:
    """`calls(n)` generates with changing prompts, batches, seeds and numbers."""

    def run(seed: int) -> None:
        options = ImageGenerationOptions(2.0 + seed % 5, temperature=0.5 + seed % 3)
        generate_all(painter.model.decoder, painting(painter, 1 + seed % 4, options, 6, seed))

    return run


@on_cuda
def test_fifty_calls_capture_little_and_leak_nothing(
    painter: JanusPipeline, calls: Callable[[int], None]
) -> None:
    if painter.device.type != "cuda":
        pytest.skip("this is about graphs")
    decoder = painter.model.decoder
    for seed in range(12):
        calls(seed)
    made = graph_pool_of(decoder).capturer.made
    assert made == 6  # prompts and steps of 1, 2 and 4 pictures
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for seed in range(50):
        calls(seed)
    torch.cuda.synchronize()
    assert graph_pool_of(decoder).capturer.made == made
    assert torch.cuda.memory_allocated() <= before


def test_batches_of_many_sizes_are_recorded_once(painter: JanusPipeline) -> None:
    decoder, sizes = painter.model.decoder, (1, 2, 3, 5, 8, 11, 16, 24, 32)
    for size in sizes:
        generate_all(decoder, painting(painter, size, ImageGenerationOptions(2.0), 2))
    made = graph_pool_of(decoder).capturer.made
    for size in reversed(sizes):
        generate_all(decoder, painting(painter, size, ImageGenerationOptions(3.0), 3, seed=size))
    assert graph_pool_of(decoder).capturer.made == made


@on_cuda
def test_stations_go_with_their_model() -> None:
    left = []
    for _ in range(2):  # the first time makes what stays: work space of the products
        pipe = JanusPipeline.from_pretrained("janus-nano", "cuda", parts="paint", progress=False)
        pipe.generate("a red circle", seed=1)
        assert graph_pool_of(pipe.model.decoder).capturer.made
        del pipe
        gc.collect()
        torch.cuda.synchronize()
        left.append(torch.cuda.memory_allocated())
    assert left[1] - left[0] < 1 << 20


@on_cuda
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("count", [2, 12])
def test_hidden_states_in_half_precision(dtype: str, count: int) -> None:
    """Roundings differ from the plain path's, so tokens may; with the same tokens, states are close."""
    pipe = JanusPipeline.from_pretrained("janus-nano", "cuda", dtype, parts="paint", progress=False)
    decoder, batch = pipe.model.decoder, painting(pipe, count, ImageGenerationOptions(3.0), 30)
    with torch.no_grad():
        found = graph_pool_of(decoder).take(decoder, batch)
        found.begin(decoder, batch)
        cache = decoder.config.new_cache(
            len(batch.rows), batch.longest + 30, device=pipe.device, dtype=batch.rows[0].dtype
        )
        hidden, mode = prefill(decoder, batch.rows, cache), batch.sampling.mode
        for step in range(30):
            wide = hidden.float()
            error = (found.hidden_RD[: len(hidden)].float() - wide).norm() / wide.norm()
            assert error < 0.05, f"step {step}"
            found.step(decoder, batch.head, mode, step)
            inputs = expand_rows(batch.head.embed(found.tokens_N[:count]), mode)
            hidden = decode_one(decoder, inputs, cache)


@on_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["vl2-mini-mha", "vl2-mini-mla", "vl2-mini-noaux"])
def test_experts_and_latent_attention_are_captured(
    name: str, dtype: str, request: pytest.FixtureRequest
) -> None:
    folder = request.config.rootpath / "tests" / "data" / name
    pipe = VL2Pipeline.from_pretrained(folder, "cuda", dtype, progress=False)
    picture = Image.new("RGB", (80, 60), (200, 30, 30))
    conversations = [pipe.question_messages(picture, "What?"), pipe.question_messages([], "Why not?")]
    found = pipe.chat_batch(conversations, 20)
    assert graph_pool_of(pipe.model.decoder).capturer.made
    pipe.model.decoder.capture = False
    wanted = pipe.chat_batch(conversations, 20)
    if dtype == "float32":
        assert found == wanted
