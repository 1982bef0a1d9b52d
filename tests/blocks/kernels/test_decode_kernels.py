"""The kernels against the plain functions: on CUDA where there is one, else through Triton's interpreter."""

# pyright: reportCallIssue=false

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from bifrons.blocks.kernels import codec
from bifrons.blocks.kernels.codec import WeightTensors
from bifrons.blocks.kernels.philox import exponential_noise
from bifrons.blocks.model.layers import RMSNorm
from bifrons.blocks.sampling.request import SamplingMode, SamplingTensors
from bifrons.blocks.sampling.sampling import guide, sample
from torch import Tensor

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
    root = Path(codec.__file__).parents[3]
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
@pytest.mark.parametrize("kind", ["plain", "int8", "int4"])
@pytest.mark.parametrize("rows", [1, 3, 33])
def test_products_in_parts(rows: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is the product of its inputs, and the norm adds them as it adds their rounded sum."""
    from bifrons.blocks.kernels import gemv
    from bifrons.blocks.kernels.rmsnorm_swiglu import add_norm

    dtype, part = torch.float16, 256
    monkeypatch.setattr(gemv, "plan_part", lambda kind, inputs, outputs: part)
    x, weight = normal(rows, 640, dtype=dtype), normal(32, 640, dtype=dtype, seed=1) / 8
    tensors = WeightTensors(weight) if kind == "plain" else codec.encode(weight, kind)
    numbers = weight if kind == "plain" else codec.decode(tensors, dtype)
    found = gemv.linear_in_parts(x, tensors)
    assert found.dtype == torch.float32
    assert found.shape == (3, rows, 32)
    for own, inputs, columns in zip(found, x.split(part, 1), numbers.split(part, 1), strict=True):
        close(own / 4, inputs.double() @ columns.double().T / 4, dtype)
    before, gain = normal(rows, 32, dtype=dtype, seed=2), normal(32, dtype=dtype, seed=3)
    added = add_norm(before, found, gain, 1e-5)
    for one, other in zip(added, add_norm(before, gemv.add_parts(found, dtype), gain, 1e-5), strict=True):
        assert torch.equal(one, other)


@runs
@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("guided", [False, True])
def test_draw(guided: bool, drawn: bool) -> None:
    """Each with its own seed, step, temperature and guidance."""
    from bifrons.blocks.kernels.sampling_triton import draw

    seeds, steps = (torch.tensor(x, device=DEVICE) for x in ([5, 2**40 + 3, 2**63 - 1, 0], [0, 3, 575, 3]))
    temperature = torch.tensor([0.7, 1.0, 1.9, 0.3], device=DEVICE)
    guidance = torch.tensor([5.0, 0.0, 1.0, 2.5], device=DEVICE)
    logits = normal(8 if guided else 4, 2500) * 3
    tokens = draw(logits, seeds, steps, guidance if guided else None, temperature if drawn else None)
    params = SamplingTensors(
        temperature, temperature, guidance, temperature, steps, *[temperature] * 4, steps
    )
    mode = SamplingMode(guided, greedy=not drawn, filtered=False, penalized=False)
    assert torch.equal(tokens, sample(logits, mode, params, seeds, steps)[0])
    mixed = guide(*logits.chunk(2), guidance[:, None]) if guided else logits
    assert torch.equal(tokens, draw(mixed, seeds, steps, None, temperature if drawn else None))


@runs
def test_noise_of_the_draw_is_the_plain_noise() -> None:
    """With equal logits the draw is the noise's own: many seeds, none of which may differ."""
    from bifrons.blocks.kernels.sampling_triton import draw

    count, size = 64, 40
    seeds, ones = torch.arange(count, device=DEVICE) * 7919, torch.ones(count, device=DEVICE)
    logits = torch.zeros(count, size, device=DEVICE)
    for step in range(2):
        steps = torch.full_like(seeds, step)
        noise = exponential_noise(seeds, steps, size)
        assert torch.equal(draw(logits, seeds, steps, None, ones), noise.argmin(-1))
