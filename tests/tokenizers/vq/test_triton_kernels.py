"""The VQ decoder's Triton kernels; in Triton's interpreter where there is no GPU."""

import pytest
import torch

pytest.importorskip("triton")
from bifrons.tokenizers.vq import triton_kernels
from bifrons.tokenizers.vq.operations import Norm
from torch import Tensor, nn
from torch.nn import functional as F

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MAPS = [(1, 32, 4, 5), (2, 64, 5, 7), (1, 512, 3, 2), (1, 96, 7, 9), (1, 160, 1, 1)]
"""With groups of 1, 2, 16, 3 and 5 channels."""


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def map_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, mean: float = 0.0) -> Tensor:
    torch.manual_seed(0)
    return last((torch.randn(shape) + mean).to(DEVICE, dtype))


def norm_of(channels: int, dtype: torch.dtype = torch.float32) -> nn.GroupNorm:
    norm = (
        nn.GroupNorm(8 if channels == 32 else 32, channels, eps=1e-6).to(DEVICE, dtype).requires_grad_(False)
    )
    norm.weight.normal_(1, 0.3)
    norm.bias.normal_()
    return norm


def weights(norm: nn.GroupNorm) -> Norm:
    return Norm(norm.weight, norm.bias, norm.num_groups)


def exact(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    weight, bias = norm.weight.double(), norm.bias.double()
    return F.group_norm(x.double(), norm.num_groups, weight, bias, norm.eps)


def close(actual: Tensor, expected: Tensor, *, sums: float = 2e-6) -> None:
    """Equal up to one rounding (in the interpreter, truncation) to the dtype, and float32 sums."""
    eps = torch.finfo(actual.dtype).eps
    torch.testing.assert_close(actual.double(), expected.double(), rtol=2 * eps, atol=sums)


@pytest.fixture(params=[3, 768])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics by one block a map, by few and by many, in small tiles; combined two at a time, or more."""
    monkeypatch.setattr(triton_kernels, "_MAX_BLOCKS", request.param)
    monkeypatch.setattr(triton_kernels, "_REDUCED_NUMEL", 1024)
    monkeypatch.setattr(triton_kernels, "_COMBINED_NUMEL", 32)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("shape", MAPS)
def test_norm_is_the_plain_one(shape: tuple[int, ...], silu: bool) -> None:
    x, norm = map_of(shape), norm_of(shape[1])
    expected = exact(norm, x)
    expected = F.silu(expected) if silu else expected
    actual = triton_kernels.normed(x, triton_kernels.statistics(x), weights(norm), silu=silu)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    sums = 1e-5 if x[0, 0].numel() * shape[1] > 32 else 1e-2  # groups of few numbers may be all alike
    close(actual, expected, sums=sums)
    triton_kernels.normed(x, triton_kernels.statistics(x), weights(norm), silu=silu, out=x)
    assert torch.equal(x, actual)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("mean", [300.0, -30000.0])
@pytest.mark.parametrize("shape", [(1, 128, 9, 7), (1, 32, 13, 11)])
def test_a_large_mean_costs_no_more_than_its_own_rounding(shape: tuple[int, ...], mean: float) -> None:
    x, norm = map_of(shape, mean=mean), norm_of(shape[1])
    actual = triton_kernels.normed(x, triton_kernels.statistics(x), weights(norm), silu=False)
    expected = exact(norm, x)
    error = (actual - expected).abs().max()
    assert error < 8 * torch.finfo(torch.float32).eps * abs(mean)
    (partials, _) = triton_kernels.statistics(x)
    squares = (x.double() - x.double().mean((2, 3), keepdim=True)).square().sum((2, 3))
    if partials.shape[1] == 1:  # of all positions of a channel
        torch.testing.assert_close(partials[:, 0, 1].double(), squares, rtol=1e-5 + 1e-7 * abs(mean), atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 64, 3, 7), (1, 256, 3, 5)])
def test_half_precision_rounds_once(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, norm = map_of(shape, dtype, mean=5.0), norm_of(shape[1], dtype)
    actual = triton_kernels.normed(x, triton_kernels.statistics(x), weights(norm))
    assert actual.dtype == dtype
    close(actual, F.silu(exact(norm, x)), sums=1e-5)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", MAPS[:4])
def test_sums_before_a_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Bias and residual are added in place or, a bias alone, within the norm."""
    x, norm, bias = map_of(shape, dtype), norm_of(shape[1], dtype), torch.randn(shape[1]).to(DEVICE, dtype)
    residual = last(torch.randn(shape).to(DEVICE, dtype))
    biased = x.double() + bias.double()[:, None, None]
    normed = triton_kernels.normed(x, triton_kernels.statistics(x), weights(norm), bias)
    close(normed, F.silu(exact(norm, biased)), sums=1e-4)
    for added, expected in ((None, biased), (residual, biased + residual.double())):
        total = x.clone(memory_format=torch.channels_last)
        statistics = triton_kernels.statistics(total, bias, added, writes=True)
        close(total, expected)
        close(triton_kernels.normed(total, statistics, weights(norm)), F.silu(exact(norm, total)), sums=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", MAPS)
def test_doubled_maps(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, bias, residual = (
        map_of(shape, dtype),
        map_of((shape[1], 1, 1, 1), dtype)[:, 0, 0, 0],
        map_of(shape, dtype, 1),
    )
    assert torch.equal(triton_kernels.doubled(x), F.interpolate(x, scale_factor=2.0))
    expected = (x.float() + bias.float()[:, None, None] + residual.float()).to(dtype)
    actual = triton_kernels.doubled(x, bias, residual)
    close(actual, F.interpolate(expected, scale_factor=2.0))
    assert actual.is_contiguous(memory_format=torch.channels_last)
