"""Prefill by captured graphs: long prompts the second time, with the numbers of the plain loop.

On the CPU, where there are no CUDA graphs, to replay a capture is to run its work again. That prefill neither
waits for the device nor copies from the host is tested with torch's fake tensors, which need no GPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from bifrons.blocks.engine.generate import plain_steps
from bifrons.blocks.engine.graph_buffers import GraphBuffers
from bifrons.blocks.engine.graph_generation import captured_tokens, graph_pool_of
from bifrons.blocks.engine.prefill import prefill
from bifrons.blocks.engine.request import GenerationBatch, SamplingParams, TokenHead
from bifrons.blocks.graphs.cuda_graphs import CudaGraphCapturer, GraphCapturer, Work
from bifrons.blocks.model import decoder as blocks_decoder
from bifrons.blocks.model.decoder import Decoder
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=on_cuda)]
MODELS = ("dense", "experts", "latent", "latent-noaux")


@pytest.fixture
def load(small_model, warm_up_capturer) -> Callable[..., Any]:
    """`load(name, device, dtype=torch.float32)`: a small model, which captures on the CPU too."""

    def make(name: str, device: str, dtype: torch.dtype = torch.float32) -> Any:
        model = small_model(name, device, dtype)
        if device == "cpu":
            graph_pool_of(model.decoder).capturer = warm_up_capturer()
        return model

    return make


def prompt_batch(model: Any, lengths: Sequence[int], new: int = 8, seed: int = 0) -> GenerationBatch:
    """Prompts of random tokens, of these lengths, and `new` tokens to generate."""
    vocabulary = model.decoder.config.vocab_size
    ids = torch.Generator().manual_seed(seed)
    rows = [torch.randint(vocabulary, (length,), generator=ids) for length in lengths]
    device = model.decoder.device
    with torch.no_grad():
        embedded = [model.embed_text(row.to(device)) for row in rows]
    head = TokenHead(model.embed_text, model.text_logits)
    return GenerationBatch(embedded, head, SamplingParams(0.0), range(len(rows)), new)


def plain(decoder: Decoder, batch: GenerationBatch) -> Tensor:
    with torch.no_grad():
        return torch.stack(list(plain_steps(decoder, batch)), dim=1).cpu()


def captured_lengths(model: Any) -> list[int]:
    """Lengths of the prompts that the only graph buffers have captured graphs for."""
    (buffers,) = graph_pool_of(model.decoder).free
    return buffers.captured_prompt_lengths


def captures_prefill(model: Any) -> bool:
    """On CUDA, experts read their token counts back in all dtypes but bfloat16, which cannot be captured."""
    on_cpu, config = model.decoder.device.type == "cpu", model.decoder.config
    return on_cpu or config.moe is None or model.decoder.dtype == torch.bfloat16


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_long_prompts_give_the_tokens_of_the_plain_loop(
    name: str, device: str, load: Callable[..., Any]
) -> None:
    """Also in buffers that hold longer prompts of other graphs, and in rows beside others."""
    model = load(name, device)
    for seed, lengths in enumerate([(300, 190), (290, 260), (200, 131), (140, 250), (300, 20), (129, 130)]):
        batch = prompt_batch(model, lengths, seed=seed)
        assert torch.equal(captured_tokens(model.decoder, batch), plain(model.decoder, batch)), lengths
    assert sorted(captured_lengths(model)) == ([256, 384] if captures_prefill(model) else [])


@on_cuda
@pytest.mark.parametrize("name", MODELS)
def test_graphs_equal_the_captured_work_in_bfloat16(name: str, load: Callable[..., Any]) -> None:
    """Of the same padded prompt, since rounding may change which experts are chosen. Without experts, the
    prompt without padding is close too."""
    model = load(name, "cuda", torch.bfloat16)
    decoder, batch, states = model.decoder, prompt_batch(model, (300,)), []
    with torch.no_grad():
        for capturer in (GraphCapturer(), CudaGraphCapturer(decoder.device)):
            buffers = GraphBuffers(decoder, 1, 1, 384, capturer)
            for _ in range(3):
                buffers.begin(decoder, batch)
            assert capturer.made == 1
            states.append(buffers.hidden_RD.float())
        if decoder.config.moe is None:
            states.append(prefill(decoder, batch.rows, decoder.new_cache(1, 300)).float())
    for other in states[1:]:
        assert (other - states[0]).norm() / states[0].norm() < (1e-3 if other is states[1] else 0.02)


@pytest.mark.parametrize("device", DEVICES)
def test_a_length_that_comes_once_is_not_captured(device: str, load: Callable[..., Any]) -> None:
    model = load("dense", device)
    captured_tokens(model.decoder, prompt_batch(model, [600]))  # buffers that the others fit into
    for length in (150, 300, 450):
        captured_tokens(model.decoder, prompt_batch(model, [length]))
    assert captured_lengths(model) == []
    captured_tokens(model.decoder, prompt_batch(model, [170]))
    made = graph_pool_of(model.decoder).capturer.made
    captured_tokens(model.decoder, prompt_batch(model, [256]))
    assert captured_lengths(model) == [256]
    assert graph_pool_of(model.decoder).capturer.made == made
    captured_tokens(model.decoder, prompt_batch(model, [100]))
    assert captured_lengths(model) == [256, 128]  # short ones are captured the first time


@pytest.mark.parametrize("device", DEVICES)
def test_the_prefill_chunk_bounds_what_is_captured(device: str, load: Callable[..., Any]) -> None:
    model = load("dense", device)
    batch = prompt_batch(model, [300])
    expected = plain(model.decoder, batch)
    for chunk, captured in ((128, []), (383, []), (384, []), (384, [384])):
        tokens = captured_tokens(model.decoder, replace(batch, prefill_chunk=chunk))
        assert torch.equal(tokens, expected)
        assert captured_lengths(model) == captured


def test_many_positions_are_not_captured(load: Callable[..., Any]) -> None:
    model = load("dense", "cpu")
    for _ in range(3):
        captured_tokens(model.decoder, prompt_batch(model, [1100] * 4, new=1))  # 4 x 1152 positions
    assert captured_lengths(model) == []
    (buffers,) = graph_pool_of(model.decoder).free
    assert len(buffers._prompts_PD) == 4096
    for _ in range(2):
        captured_tokens(model.decoder, prompt_batch(model, [1024] * 4, new=1))
    assert captured_lengths(model) == [1024]


def test_prefill_from_position_0_is_causal_without_a_mask(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal to attention with a mask over the cache, which batch invariance is switched off to compare."""
    monkeypatch.setattr(blocks_decoder, "is_batch_invariant", lambda x: False)
    for name in MODELS:
        model = load(name, "cpu")
        decoder, x_BTD = model.decoder, torch.stack(prompt_batch(model, (40, 40)).rows)
        for length in (40, 1):
            caches = [decoder.new_cache(2, 64) for _ in range(2)]
            for cache in caches:
                cache.reserve(60)
            with torch.no_grad():
                masked = decoder(x_BTD[:, :length], caches[0])
                causal = decoder(x_BTD[:, :length], caches[1], from_start=True)
            torch.testing.assert_close(causal, masked, rtol=1e-4, atol=1e-5)
            for one, other in zip(caches[0].buffers, caches[1].buffers, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", MODELS)
def test_prefill_never_waits_for_the_device(
    name: str,
    dtype: torch.dtype,
    small_model: Callable[..., Any],
    on_fake_gpu: Callable[..., FakeTensorMode],
    host_free_mode: Any,
) -> None:
    class HostFreeCapturer(GraphCapturer):
        def __call__(self, work: Work) -> Work:
            with host_free_mode() as watched:
                work()
            self.made += watched.launched > 0
            return lambda: None

    model = small_model(name, "meta")
    with on_fake_gpu(model, dtype), torch.no_grad():
        decoder, capturer = model.decoder, HostFreeCapturer()
        buffers, width = GraphBuffers(decoder, 2, 1, 512, capturer), decoder.config.hidden_size
        rows = [torch.empty(length, width, device="cuda", dtype=dtype) for length in (300, 120)]
        buffers.captured_prefill(decoder, rows, 384)
        assert capturer.made == 1
