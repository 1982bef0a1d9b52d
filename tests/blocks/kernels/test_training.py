"""Kernels for training equal the plain functions, and their gradients those of autograd; in Triton's
interpreter where there is no GPU."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from bifrons.blocks.kernels import dispatch, prefill_fused, training
from bifrons.blocks.model.layers import RMSNorm, rotary_table, rotate, rotate_pairs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter cuts off where the device rounds.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)


def made(seed: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return tensor.to(DEVICE, dtype).requires_grad_()


def compare(kernel, plain, inputs, dtype) -> None:
    """Results and gradients of a function of some inputs; those of `plain` are computed in float32."""
    found = kernel(*inputs)
    wanted = plain(*(x.float() for x in inputs))
    slope = made(9, *found.shape, dtype=dtype).detach()
    gradients = torch.autograd.grad(found, inputs, slope)
    expected = torch.autograd.grad(wanted, inputs, slope.float())
    for one, other, like in zip((found, *gradients), (wanted, *expected), (inputs[0], *inputs), strict=True):
        assert one.dtype == like.dtype
        assert (one - other).abs().max() < TOLERANCE[dtype] * other.abs().max()


@dtypes
@pytest.mark.parametrize("width", [24, 80])
def test_norm(width, dtype, monkeypatch) -> None:
    monkeypatch.setattr(training, "_PROGRAMS", 2)  # programs sum over several rows
    x, weight = made(0, 2, 3, width, dtype=dtype), made(1, width, dtype=dtype)

    def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (width,), weight.to(x.dtype), 1e-6)

    compare(lambda x, weight: training.rms_norm(x, weight, 1e-6), plain, (x, weight), dtype)
    compare(lambda x: training.rms_norm(x, weight.detach(), 1e-6), lambda x: plain(x, weight), (x,), dtype)
    norm = RMSNorm(width).to(DEVICE, dtype)
    torch.testing.assert_close(training.rms_norm(x, norm.weight, norm.eps), norm(x), rtol=2**-7, atol=0)


@dtypes
def test_swiglu(dtype) -> None:
    gate, up = (made(seed, 2, 3, 20, dtype=dtype) for seed in (0, 1))
    compare(training.swiglu, lambda gate, up: F.silu(gate) * up, (gate, up), dtype)


@dtypes
@pytest.mark.parametrize("pairs", [False, True])
def test_rotation_is_used_while_training(pairs, dtype, monkeypatch) -> None:
    x = made(0, 2, 5, 3, 24, dtype=dtype)
    table = rotary_table(torch.arange(5, device=DEVICE).expand(2, 5) + 700, 24, 10000.0)
    function, calls, kernel = rotate_pairs if pairs else rotate, [], prefill_fused.rotate
    monkeypatch.setattr(prefill_fused, "rotate", lambda *a, **k: calls.append(1) or kernel(*a, **k))

    def rotated(x: torch.Tensor, has_kernels: bool) -> torch.Tensor:
        monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: has_kernels)
        return function(x.transpose(1, 2), table)

    compare(lambda x: rotated(x, True), lambda x: rotated(x, False), (x,), dtype)
    assert calls == [1]
