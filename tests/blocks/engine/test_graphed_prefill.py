"""Prompts read by recordings: long ones the second time, with the numbers of the plain loop.

The recordings are those of CUDA where it is there, and on the CPU the work itself. That nothing of the
reading waits for the device or copies from the host is shown with torch's fake tensors, which need no GPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bifrons.blocks.engine import graph_generation
from bifrons.blocks.engine.generate import plain_steps
from bifrons.blocks.engine.graph_buffers import GraphBuffers
from bifrons.blocks.engine.graph_generation import captured_tokens, graph_pool_of
from bifrons.blocks.engine.prefill import prefill
from bifrons.blocks.engine.request import GenerationBatch, SamplingParams, TokenHead
from bifrons.blocks.graphs.cuda_graphs import CudaGraphCapturer, GraphCapturer, Work
from bifrons.blocks.kernels import dispatch
from bifrons.blocks.model import decoder as blocks_decoder
from bifrons.blocks.model.decoder import Decoder
from bifrons.janus.config import read_config
from bifrons.janus.model import JanusModel
from bifrons.janus.pipeline import JanusPipeline
from bifrons.vl2.config import read_config as read_vl2_config
from bifrons.vl2.model import VL2Model
from bifrons.vl2.pipeline import VL2Pipeline
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=on_cuda)]
FOLDER = Path(__file__).parent.parent.parent / "data"
MINIS = ("janus-mini", "vl2-mini-mha", "vl2-mini-mla", "vl2-mini-noaux")


class Twice(GraphCapturer):
    """Runs the work while it is recorded, as graphs' capturer does to warm up."""

    def __call__(self, work: Work) -> Work:
        work()
        return super().__call__(work)


def load(name: str, device: str, dtype: str = "float32") -> Any:
    family = JanusPipeline if name.startswith("janus") else VL2Pipeline
    model = family.from_pretrained(FOLDER / name, device, dtype, progress=False).model
    graph_generation._pools.pop(model.decoder, None)
    if device == "cpu":
        graph_pool_of(model.decoder).capturer = Twice()
    return model


def reading(model: Any, lengths: Sequence[int], new: int = 8, seed: int = 0) -> GenerationBatch:
    """Prompts of random tokens, so many of each, and so many new ones."""
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


def prompt_keys(model: Any) -> list[int]:
    """Lengths of the prompts that the one set of buffers has recordings for."""
    (buffers,) = graph_pool_of(model.decoder).free
    return buffers.captured_prompt_lengths


def records_here(model: Any) -> bool:
    """On CUDA, experts ask for their numbers in all dtypes but one, and nothing of that is recorded."""
    on_cpu, config = model.decoder.device.type == "cpu", model.decoder.config
    return on_cpu or config.moe is None or model.decoder.dtype == torch.bfloat16


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MINIS)
def test_long_prompts_give_the_tokens_of_the_plain_loop(name: str, device: str) -> None:
    """Also over what longer prompts of other recordings left, and in rows beside others."""
    model = load(name, device)
    for seed, lengths in enumerate([(300, 190), (290, 260), (200, 131), (140, 250), (300, 20), (129, 130)]):
        batch = reading(model, lengths, seed=seed)
        assert torch.equal(captured_tokens(model.decoder, batch), plain(model.decoder, batch)), lengths
    assert sorted(prompt_keys(model)) == ([256, 384] if records_here(model) else [])


@on_cuda
@pytest.mark.parametrize("name", MINIS)
def test_graphs_compute_what_is_recorded_in_bfloat16(name: str) -> None:
    """Experts included, whose choice turns on roundings: so of the same padded prompt. Where there are none,
    the prompt without padding is close too."""
    model = load(name, "cuda", "bfloat16")
    decoder, batch, found = model.decoder, reading(model, (300,)), []
    with torch.no_grad():
        for capturer in (GraphCapturer(), CudaGraphCapturer(decoder.device)):
            buffers = GraphBuffers(decoder, 1, 1, 384, capturer)
            for _ in range(3):
                buffers.begin(decoder, batch)
            assert capturer.made == 1
            found.append(buffers.hidden_RD.float())
        if decoder.config.moe is None:
            found.append(prefill(decoder, batch.rows, decoder.new_cache(1, 300)).float())
    for other in found[1:]:
        assert (other - found[0]).norm() / found[0].norm() < (1e-3 if other is found[1] else 0.02)


@pytest.mark.parametrize("device", DEVICES)
def test_a_length_that_comes_once_is_not_recorded(device: str) -> None:
    model = load("janus-mini", device)
    captured_tokens(model.decoder, reading(model, [600]))  # buffers that the others fit into
    for length in (150, 300, 450):
        captured_tokens(model.decoder, reading(model, [length]))
    assert prompt_keys(model) == []
    captured_tokens(model.decoder, reading(model, [170]))
    made = graph_pool_of(model.decoder).capturer.made
    captured_tokens(model.decoder, reading(model, [256]))
    assert prompt_keys(model) == [256]
    assert graph_pool_of(model.decoder).capturer.made == made
    captured_tokens(model.decoder, reading(model, [100]))
    assert prompt_keys(model) == [256, 128]  # short ones are recorded the first time


@pytest.mark.parametrize("device", DEVICES)
def test_a_chunk_bounds_what_is_read_at_once(device: str) -> None:
    model = load("janus-mini", device)
    batch = reading(model, [300])
    wanted = plain(model.decoder, batch)
    for chunk, recorded in ((128, []), (383, []), (384, []), (384, [384])):
        found = captured_tokens(model.decoder, replace(batch, prefill_chunk=chunk))
        assert torch.equal(found, wanted)
        assert prompt_keys(model) == recorded


def test_many_positions_are_not_recorded() -> None:
    model = load("janus-mini", "cpu")
    for _ in range(3):
        captured_tokens(model.decoder, reading(model, [1100] * 4, new=1))  # 4 x 1152 positions
    assert prompt_keys(model) == []
    (buffers,) = graph_pool_of(model.decoder).free
    assert len(buffers._prompts_PD) == 4096
    for _ in range(2):
        captured_tokens(model.decoder, reading(model, [1024] * 4, new=1))
    assert prompt_keys(model) == [1024]


def test_prompts_that_begin_are_read_causally(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the mask over the cache, in float32 as if it were not computed row by row."""
    monkeypatch.setattr(blocks_decoder, "is_batch_invariant", lambda x: False)
    for name in MINIS:
        model = load(name, "cpu")
        decoder, x_BTD = model.decoder, torch.stack(reading(model, (40, 40)).rows)
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


class HostFree(TorchDispatchMode):
    """Refuses what a capture would: tensors of the CPU, and asking for numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.launched = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        assert all(x.device.type == "cuda" for x in tensors), f"{func} is given a tensor of the host"
        assert not any(word in str(func) for word in ("nonzero", "_local_scalar")), f"{func} waits"
        self.launched += 1
        return out


class HostFreeCapturer(GraphCapturer):
    def __call__(self, work: Work) -> Work:
        with HostFree() as mode:
            work()
        self.made += mode.launched > 0
        return lambda: None


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, torch.dtype], tuple[Any, FakeTensorMode]]:
    """A model of fake tensors on a fake GPU, where no kernels of Triton serve."""
    if torch.cuda.is_available():
        pytest.skip("a real GPU is there")
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: False)

    def make(name: str, dtype: torch.dtype) -> tuple[Any, FakeTensorMode]:
        janus, folder, mode = name.startswith("janus"), FOLDER / name, FakeTensorMode()
        with torch.device("meta"):
            model = JanusModel(read_config(folder)[0]) if janus else VL2Model(read_vl2_config(folder))
        with mode:
            for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
                parent, _, leaf = path.rpartition(".")
                there: Tensor = torch.empty(tensor.shape, dtype=dtype, device="cuda")
                if isinstance(tensor, torch.nn.Parameter):
                    there = torch.nn.Parameter(there, requires_grad=False)
                delattr(owner := model.get_submodule(parent), leaf)
                setattr(owner, leaf, there)
        return model.eval(), mode

    return make


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", MINIS)
def test_reading_never_waits_for_the_device(
    name: str, dtype: torch.dtype, fake_model: Callable[[str, torch.dtype], tuple[Any, FakeTensorMode]]
) -> None:
    model, mode = fake_model(name, dtype)
    decoder, side = model.decoder, model.config.vision.image_size
    with mode, torch.no_grad():
        capturer = HostFreeCapturer()
        buffers, width = GraphBuffers(decoder, 2, 1, 512, capturer), decoder.config.hidden_size
        rows = [torch.empty(length, width, device="cuda", dtype=dtype) for length in (300, 120)]
        buffers.captured_prefill(decoder, rows, 384)
        assert capturer.made == 1
        with HostFree() as watched:
            model._encode_vision(torch.empty(5, 3, side, side, device="cuda", dtype=dtype))
        assert watched.launched
