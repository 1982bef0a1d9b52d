"""The kernels against the plain functions: on CUDA where there is one, else through Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from bifrons.blocks.checkpoints.quantize import quantize_model
from bifrons.blocks.engine import generate, graph_generation
from bifrons.blocks.engine.philox import exponential_noise
from bifrons.blocks.engine.request import GenerationBatch, SamplingParams, TokenHead
from bifrons.blocks.engine.sampling import guide, sample
from bifrons.blocks.graphs import decode_step
from bifrons.blocks.kernels import dispatch
from bifrons.blocks.kernels.codec import WeightTensors
from bifrons.blocks.model.context import DecoderConfig, LatentConfig
from bifrons.blocks.model.decoder import Decoder
from bifrons.blocks.model.layers import RMSNorm
from bifrons.blocks.model.moe import MoEConfig
from torch import Tensor, nn

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda" if CUDA else "cpu")
runs = pytest.mark.skipif(
    not (CUDA or INTERPRETED), reason="there is no CUDA; test_through_the_interpreter runs it"
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The interpreter cuts bfloat16 off where the device rounds.
ROOM = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.mark.skipif(CUDA or INTERPRETED, reason="the tests themselves run")
def test_through_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    root = Path(graph_generation.__file__).parents[3]
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found.float(), wanted.float(), atol=ROOM[dtype], rtol=ROOM[dtype])


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@runs
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 80])
def test_norm_with_its_sum(dtype: torch.dtype, width: int) -> None:
    from bifrons.blocks.kernels.rmsnorm_swiglu import add_norm

    norm = RMSNorm(width, 1e-5).to(DEVICE, dtype).requires_grad_(False)
    norm.weight.normal_()
    x, delta, out = normal(3, width, dtype=dtype), normal(3, width, dtype=dtype, seed=1), normal(3, width)
    total, normed = add_norm(x, delta, norm.weight, norm.eps)
    close(total, x + delta, dtype)
    close(normed, norm(x + delta), dtype)
    same, normed = add_norm(x, None, norm.weight, norm.eps, out.to(dtype))
    assert torch.equal(same, x)
    close(normed, norm(x), dtype)


@runs
@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu(dtype: torch.dtype) -> None:
    from bifrons.blocks.kernels.rmsnorm_swiglu import swiglu

    gate_up = normal(3, 2 * 600, dtype=dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    close(swiglu(gate_up), F.silu(gate) * up, dtype)


@runs
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 64, 40), (3, 272, 96), (17, 64, 32), (33, 64, 32)]
)
def test_products(dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> None:
    from bifrons.blocks.kernels.gemv import MAX_ROWS, linear, linear_swiglu, supports

    x, weight = normal(rows, inputs, dtype=dtype), normal(outputs, inputs, dtype=dtype, seed=1) / 8
    assert supports(x, WeightTensors(weight)) == (rows <= MAX_ROWS and dtype != torch.float32)
    exact = x.double() @ weight.double().T
    close(linear(x, WeightTensors(weight)) / 4, exact / 4, dtype)
    gate, up = F.linear(x, weight).chunk(2, dim=-1)
    close(linear_swiglu(x, WeightTensors(weight)) / 4, F.silu(gate) * up / 4, dtype)


@runs
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("guided", [False, True])
def test_draw(guided: bool, temperature: float) -> None:
    from bifrons.blocks.kernels.sampling_triton import draw

    seeds, steps = (torch.tensor(x, device=DEVICE) for x in ([5, 2**40 + 3, 2**63 - 1, 0], [0, 3, 575, 3]))
    logits = normal(8 if guided else 4, 2500) * 3
    tokens, record = torch.zeros(4, device=DEVICE).long(), torch.zeros(600, 4, device=DEVICE).long()
    before = steps.clone()
    draw(
        logits,
        seeds,
        steps,
        tokens,
        record,
        guidance=torch.tensor([5.0], device=DEVICE) if guided else None,
        temperature=torch.tensor([temperature], device=DEVICE) if temperature else None,
    )
    mixed = guide(logits[0::2], logits[1::2], 5.0) if guided else logits
    params = SamplingParams(temperature)
    assert torch.equal(tokens, sample(mixed, params.mode, params.tensors, seeds, before))
    assert torch.equal(steps, before + 1)
    assert torch.equal(record[before, torch.arange(4, device=DEVICE)], tokens)
    again = torch.zeros_like(tokens)
    one = torch.tensor([temperature], device=DEVICE) if temperature else None
    draw(mixed, seeds, before, again, None, guidance=None, temperature=one)
    assert torch.equal(again, tokens)


@runs
def test_noise_of_the_draw_is_the_plain_noise() -> None:
    """With equal logits the draw is the noise's own: many seeds, none of which may differ."""
    from bifrons.blocks.kernels.sampling_triton import draw

    count, size = 64, 40
    seeds = torch.arange(count, device=DEVICE) * 7919
    steps, tokens = torch.zeros(2, count, dtype=torch.long, device=DEVICE)
    record, one = torch.zeros(3, count, device=DEVICE).long(), torch.ones(1, device=DEVICE)
    logits = torch.zeros(count, size, device=DEVICE)
    for step in range(2):
        noise = exponential_noise(seeds, torch.full_like(seeds, step), size)
        draw(logits, seeds, steps, tokens, record, guidance=None, temperature=one)
        assert torch.equal(tokens, noise.argmin(-1))


class Speaker(nn.Module):
    """A small model with one token head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        return self.decoder.embed_tokens(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


SIZES = {"vocab_size": 70, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "max_positions": 256}
MODELS = {
    "multi-head": DecoderConfig(**SIZES, num_heads=4, num_kv_heads=4, head_dim=8),
    "grouped-query": DecoderConfig(**SIZES, num_heads=6, num_kv_heads=2, head_dim=16),
    "experts": DecoderConfig(
        **SIZES, num_heads=4, num_kv_heads=4, head_dim=8, moe=MoEConfig(4, 2, 16, 1, first_dense=1)
    ),
    "latent": DecoderConfig(
        **SIZES,
        num_heads=4,
        num_kv_heads=4,
        head_dim=8,
        latent=LatentConfig(16, None, 8, 8, 8),
        moe=MoEConfig(4, 2, 16, 1, first_dense=1),
    ),
}


def speaker(name: str, dtype: torch.dtype = torch.float32) -> Speaker:
    torch.manual_seed(0)
    model = Speaker(MODELS[name]).requires_grad_(False).eval()
    for parameter in model.parameters():
        parameter.mul_(2.0) if parameter.ndim > 1 else parameter.uniform_(0.5, 1.5)
    return model.to(DEVICE, dtype)


def batch(model: Speaker, lengths: list[int], sampling: SamplingParams, steps: int = 10) -> GenerationBatch:
    dtype = model.head.weight.dtype
    rows = [normal(length, 32, dtype=dtype, seed=length) for length in lengths]
    seeds = list(range(len(rows) // sampling.rows_each))
    return GenerationBatch(rows, TokenHead(model.embed, model.logits), sampling, seeds, steps)


@pytest.fixture
def through_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's kernels serve the CPU."""
    if INTERPRETED:
        found = decode_step.import_kernels()
        monkeypatch.setattr(decode_step, "load_kernels", lambda device: found)
        monkeypatch.setattr(dispatch, "supports_float8", lambda device: True)


@runs
@pytest.mark.usefixtures("through_kernels")
@pytest.mark.parametrize("name", MODELS)
def test_steps_through_kernels_are_the_plain_steps(name: str) -> None:
    model = speaker(name)
    for sampling in (
        SamplingParams(0.8),
        SamplingParams(0.0, guidance_scale=3.0),
        SamplingParams(1.3, top_k=20, top_p=0.9, guidance_scale=2.0),
    ):
        asked = batch(model, [5, 68, 3, 12], sampling, 4)
        wanted = torch.stack(list(generate.plain_steps(model.decoder, asked)), dim=1).cpu()
        assert torch.equal(graph_generation.captured_tokens(model.decoder, asked), wanted)


@runs
@pytest.mark.usefixtures("through_kernels")
def test_penalty_through_kernels() -> None:
    model = speaker("multi-head")
    sampling = SamplingParams(0.0, repetition_penalty=3.0)
    seen = torch.zeros(2, 70, dtype=torch.bool, device=DEVICE)
    seen[0, :9] = True
    rows = [normal(length, 32, seed=length) for length in (4, 8)]
    asked = GenerationBatch(rows, TokenHead(model.embed, model.logits), sampling, [0, 1], 10, seen)
    wanted = torch.stack(list(generate.plain_steps(model.decoder, asked)), dim=1).cpu()
    assert torch.equal(graph_generation.captured_tokens(model.decoder, asked), wanted)
    assert int(seen.sum()) == 9


@runs
@pytest.mark.usefixtures("through_kernels")
@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_steps_with_quantized_weights_are_the_plain_steps(kind: str) -> None:
    whole = nn.Module()
    whole.language = speaker("multi-head")
    quantize_model(whole, kind)
    model = whole.language
    asked = batch(model, [5, 8], SamplingParams(0.0))
    wanted = torch.stack(list(generate.plain_steps(model.decoder, asked)), dim=1).cpu()
    assert torch.equal(graph_generation.captured_tokens(model.decoder, asked), wanted)


def test_kernels_are_for_cuda() -> None:
    assert decode_step.load_kernels(torch.device("cpu")) is None
    assert not generate.captures(speaker("multi-head").cpu().decoder, TokenHead(*[SimpleNamespace] * 2))
