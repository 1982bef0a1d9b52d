"""Image generation of janus-nano by captured graphs against the plain loop; on the CPU a replay runs the
captured work again."""

import gc
from dataclasses import replace

import pytest
import torch
from bifrons.blocks.engine import graph_generation
from bifrons.blocks.engine.generate import plain_steps
from bifrons.blocks.engine.graph_generation import captured_steps, captured_tokens, graph_pool_of
from bifrons.blocks.engine.prefill import decode_one, prefill
from bifrons.blocks.engine.request import GenerationBatch
from bifrons.blocks.engine.sampling import expand_rows
from bifrons.blocks.model.decoder import Decoder
from bifrons.janus.image_generation import ImageGenerationOptions, image_generation_batch
from bifrons.janus.pipeline import JanusPipeline
from torch import Tensor

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=on_cuda)]
TEXTS = ("a red circle", "a photo of two blue squares and a green star", "x", "three stars", "a big circle")


@pytest.fixture(scope="module")
def pipes() -> dict[str, JanusPipeline]:
    return {}


@pytest.fixture(params=DEVICES)
def pipe(request: pytest.FixtureRequest, pipes: dict[str, JanusPipeline]) -> JanusPipeline:
    """janus-nano in float32, without graph buffers of earlier tests."""
    device = request.param
    if device not in pipes:
        pipes[device] = JanusPipeline.from_pretrained(
            "janus-nano", device, "float32", parts="paint", progress=False
        )
    graph_generation._pools.pop(pipes[device].model.decoder, None)
    return pipes[device]


def image_batch(
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


@pytest.mark.parametrize(
    "options",
    [
        ImageGenerationOptions(1.0, temperature=0.0),
        ImageGenerationOptions(3.0),
        ImageGenerationOptions(1.0, temperature=0.7, top_p=0.8),
        ImageGenerationOptions(2.0, top_k=9, top_p=0.9),
    ],
)
def test_tokens_are_those_of_the_plain_loop(pipe: JanusPipeline, options: ImageGenerationOptions) -> None:
    decoder = pipe.model.decoder
    for count in (1, 3):
        batch = image_batch(pipe, count, options)
        expected = plain(decoder, batch)
        assert torch.equal(captured_tokens(decoder, batch), expected)
        assert torch.equal(torch.stack(list(captured_steps(decoder, batch)), dim=1), expected)


def test_a_whole_image_is_the_same(pipe: JanusPipeline) -> None:
    batch = image_batch(pipe, 2, ImageGenerationOptions(3.0), pipe.model.config.num_codes)
    expected = plain(pipe.model.decoder, batch)
    assert torch.equal(captured_tokens(pipe.model.decoder, batch), expected)


@on_cuda
def test_graph_buffers_go_with_their_model() -> None:
    left = []
    for _ in range(2):  # the first time allocates what stays: cuBLAS workspaces
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
    """Rounding differs from the plain loop's, so tokens may too; with the same tokens, states are close."""
    pipe = JanusPipeline.from_pretrained("janus-nano", "cuda", dtype, parts="paint", progress=False)
    decoder, batch = pipe.model.decoder, image_batch(pipe, count, ImageGenerationOptions(3.0), 30)
    with torch.no_grad():
        buffers = graph_pool_of(decoder).take(decoder, batch)
        buffers.begin(decoder, batch)
        cache = decoder.config.new_cache(
            len(batch.rows), batch.longest + 30, device=pipe.device, dtype=batch.rows[0].dtype
        )
        hidden, mode = prefill(decoder, batch.rows, cache), batch.sampling.mode
        for step in range(30):
            wide = hidden.float()
            error = (buffers.hidden_RD[: len(hidden)].float() - wide).norm() / wide.norm()
            assert error < 0.05, f"step {step}"
            buffers.step(decoder, batch.head, mode, step)
            inputs = expand_rows(batch.head.embed(buffers.tokens_N[:count]), mode)
            hidden = decode_one(decoder, inputs, cache)
