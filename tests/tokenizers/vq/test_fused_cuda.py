"""The image tokenizer's decoder by kernels; in Triton's interpreter where there is no GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.engine.cuda_graphs import CudaGraphCapturer
from bifrons.blocks.kernels import dispatch
from bifrons.tokenizers.vq import fused_cuda, triton_kernels
from bifrons.tokenizers.vq.model import VQConfig, VQModel
from torch import Tensor, nn
from torch.nn import functional as F

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
cuda = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
CONFIG = VQConfig(codebook_size=64, ch=32, ch_mult=(1, 2), z_channels=16, num_res_blocks=0)
GRIDS = [(5, 9), (2, 3)] + [(1, 1)] * (DEVICE == "cpu")  # torch's attention has no kernel for one place
MAPS = [(1, 32, 4, 5), (2, 64, 5, 7), (1, 512, 3, 2), (1, 96, 7, 9), (1, 160, 1, 1)]
"""With groups of 1, 2, 16, 3 and 5 channels."""


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def map_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, mean: float = 0.0) -> Tensor:
    torch.manual_seed(0)
    return last((torch.randn(shape) + mean).to(DEVICE, dtype))


def norm_of(channels: int, dtype: torch.dtype = torch.float32) -> nn.GroupNorm:
    norm = nn.GroupNorm(32, channels, eps=1e-6).to(DEVICE, dtype).requires_grad_(False)
    norm.weight.normal_(1, 0.3)
    norm.bias.normal_()
    return norm


def exact(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    weight, bias = norm.weight.double(), norm.bias.double()
    return F.group_norm(x.double(), norm.num_groups, weight, bias, norm.eps)


def close(found: Tensor, wanted: Tensor, *, sums: float = 2e-6) -> None:
    """But for one rounding (or cutting off, in the interpreter) to the dtype, and float32 sums."""
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), wanted.double(), rtol=2 * eps, atol=sums)


@pytest.fixture(params=[3, 768])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics by one block a map, by few and by many, in small tiles; united two at a time, or more."""
    monkeypatch.setattr(triton_kernels, "_BLOCKS", request.param)
    monkeypatch.setattr(triton_kernels, "_SUMMED", 1024)
    monkeypatch.setattr(triton_kernels, "_UNITED", 32)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("shape", MAPS)
def test_norm_is_the_plain_one(shape: tuple[int, ...], silu: bool) -> None:
    x, norm = map_of(shape), norm_of(shape[1])
    wanted = exact(norm, x)
    wanted = F.silu(wanted) if silu else wanted
    found = triton_kernels.normed(x, triton_kernels.statistics(x), norm, silu=silu)
    assert found.is_contiguous(memory_format=torch.channels_last)
    sums = 1e-5 if x[0, 0].numel() * shape[1] > 32 else 1e-2  # groups of few numbers may be all alike
    close(found, wanted, sums=sums)
    triton_kernels.normed(x, triton_kernels.statistics(x), norm, silu=silu, out=x)
    assert torch.equal(x, found)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("mean", [300.0, -30000.0])
@pytest.mark.parametrize("shape", [(1, 128, 9, 7), (1, 32, 13, 11)])
def test_a_large_mean_costs_no_more_than_its_own_rounding(shape: tuple[int, ...], mean: float) -> None:
    x, norm = map_of(shape, mean=mean), norm_of(shape[1])
    found = triton_kernels.normed(x, triton_kernels.statistics(x), norm, silu=False)
    wanted = exact(norm, x)
    error = (found - wanted).abs().max()
    assert error < 8 * torch.finfo(torch.float32).eps * abs(mean)
    (parts, _) = triton_kernels.statistics(x)
    squares = (x.double() - x.double().mean((2, 3), keepdim=True)).square().sum((2, 3))
    if parts.shape[1] == 1:  # of all places of a channel
        torch.testing.assert_close(parts[:, 0, 1].double(), squares, rtol=1e-5 + 1e-7 * abs(mean), atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 64, 3, 7), (1, 256, 3, 5)])
def test_half_precision_rounds_once(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, norm = map_of(shape, dtype, mean=5.0), norm_of(shape[1], dtype)
    found = triton_kernels.normed(x, triton_kernels.statistics(x), norm)
    assert found.dtype == dtype
    close(found, F.silu(exact(norm, x)), sums=1e-5)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", MAPS[:4])
def test_sums_before_a_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Of bias and past, written over the map or, for a bias alone, in the norm."""
    x, norm, bias = map_of(shape, dtype), norm_of(shape[1], dtype), torch.randn(shape[1]).to(DEVICE, dtype)
    past = last(torch.randn(shape).to(DEVICE, dtype))
    biased = x.double() + bias.double()[:, None, None]
    normed = triton_kernels.normed(x, triton_kernels.statistics(x), norm, bias)
    close(normed, F.silu(exact(norm, biased)), sums=1e-4)
    for more, wanted in ((None, biased), (past, biased + past.double())):
        total = x.clone(memory_format=torch.channels_last)
        found = triton_kernels.statistics(total, bias, more, writes=True)
        close(total, wanted)
        close(triton_kernels.normed(total, found, norm), F.silu(exact(norm, total)), sums=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", MAPS)
def test_doubled_maps(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, bias, past = (
        map_of(shape, dtype),
        map_of((shape[1], 1, 1, 1), dtype)[:, 0, 0, 0],
        map_of(shape, dtype, 1),
    )
    assert torch.equal(triton_kernels.doubled(x), F.interpolate(x, scale_factor=2.0))
    wanted = (x.float() + bias.float()[:, None, None] + past.float()).to(dtype)
    found = triton_kernels.doubled(x, bias, past)
    close(found, F.interpolate(wanted, scale_factor=2.0))
    assert found.is_contiguous(memory_format=torch.channels_last)


def model_of(config: VQConfig = CONFIG, dtype: torch.dtype = torch.float32) -> VQModel:
    """With norms that do something."""
    torch.manual_seed(0)
    model = VQModel(config, encodes=False).requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.normal_(float(name.endswith("weight")), 0.3)
    return model.to(DEVICE, dtype)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Kernels serve, in float32 too; counts what they decode."""
    monkeypatch.setattr(dispatch, "device_serves", lambda device: True)
    monkeypatch.setattr(fused_cuda, "DTYPES", (torch.float32, torch.float16, torch.bfloat16))
    calls: list[int] = []
    finish = fused_cuda.Fused.finish

    def count(self: Any, x: Any, *args: Any) -> Tensor:
        calls.append(len(x.y_BCHW))
        return finish(self, x, *args)

    monkeypatch.setattr(fused_cuda.Fused, "finish", count)
    return calls


def codes_of(grid: tuple[int, int], pictures: int = 1, config: VQConfig = CONFIG) -> Tensor:
    return torch.randint(config.codebook_size, (pictures, grid[0] * grid[1])).to(DEVICE)


def plain(model: VQModel, codes_BT: Tensor, grid: tuple[int, int]) -> Tensor:
    book = model.quantize.vectors()[codes_BT].transpose(1, 2)
    return model.decoder(model.post_quant_conv(book.unflatten(2, grid)))


@pytest.mark.parametrize("grid", GRIDS)
def test_decoding_gives_what_the_plain_form_gives(grid: tuple[int, int], serve: list[int]) -> None:
    model, codes = model_of(), codes_of(grid)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        wanted, found = plain(model, codes, grid), model.decode(codes, grid)
    assert serve == [1]
    assert found.shape == wanted.shape
    assert found.is_contiguous()
    assert (found - wanted).abs().max() < 1e-4 * (wanted.max() - wanted.min())


def test_weights_are_laid_anew_once(serve: list[int]) -> None:
    """And nothing else of them changes."""
    model = model_of()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    first = model.decode(codes := codes_of((1, 2)), (1, 2))
    places = [weight.data_ptr() for weight in model.parameters()]
    assert model.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(model.decode(codes, (1, 2)), first)
    assert places == [weight.data_ptr() for weight in model.parameters()]
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert serve == [1, 1]


def test_weights_of_inference_mode_are_laid_anew(serve: list[int]) -> None:
    with torch.inference_mode():
        model = model_of()
        model.decode(codes_of((1, 1)), (1, 1))
        assert model.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        model.decode(codes_of((1, 1)), (1, 1))
    assert serve == [1, 1]


def test_new_weights_count_at_once(serve: list[int]) -> None:
    model, codes = model_of(), codes_of((1, 2))
    before = model.decode(codes, (1, 2))
    for weight in model.decoder.parameters():
        weight.mul_(1.1)
    changed = model.decode(codes, (1, 2))
    assert (changed - before).abs().max() > 1e-3
    state = {k: v / 1.1 if k.startswith("decoder") else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    torch.testing.assert_close(model.decode(codes, (1, 2)), before, atol=1e-3, rtol=0)
    assert len(serve) == 3


def test_trained_weights_stay_where_they_are(serve: list[int]) -> None:
    model, codes = model_of().requires_grad_(True), codes_of((1, 2))
    places = [weight.data_ptr() for weight in model.parameters()]
    with torch.no_grad():
        found = model.decode(codes, (1, 2))
    assert serve == [1]
    assert places == [weight.data_ptr() for weight in model.parameters()]
    wanted = model.decode(codes, (1, 2))
    wanted.sum().backward()
    assert model.decoder.conv_in.weight.grad is not None
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
    model.decoder.requires_grad_(False)
    model.decode(codes, (1, 2)).sum().backward()
    assert model.quantize.embedding.weight.grad is not None
    model.requires_grad_(False)
    with torch.autocast(DEVICE, torch.bfloat16):
        model.decode(codes, (1, 2))
    assert serve == [1]


def test_many_pictures_are_decoded_few_at_a_time(serve: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    grid, model = (2, 3), model_of()
    monkeypatch.setattr(fused_cuda, "NUMBERS_AT_ONCE", 2 * CONFIG.largest_map(grid) + 1)
    assert model.at_once(grid) == 2
    codes = codes_of(grid, 3)
    found = model.decode(codes, grid)
    assert serve == [2, 1]
    torch.testing.assert_close(found, plain(model, codes, grid), atol=1e-3, rtol=0)
    if DEVICE == "cuda":  # there is nothing for strips to take statistics of
        assert model.decode(codes[:0], grid).shape == (0, 3, 4, 6)


def test_the_largest_map() -> None:
    """Of VQ-16 for 384 pixels: 128 channels at full size, 256 at half of it."""
    assert VQConfig().largest_map((24, 24)) == 128 * 384 * 384
    assert CONFIG.largest_map((2, 3)) == 64 * 4 * 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_as_little_as_the_plain_form(dtype: torch.dtype, serve: list[int]) -> None:
    """Both are compared with float32. The interpreter cuts off where a GPU rounds."""
    model, codes, grid = model_of(dtype=dtype), codes_of((4, 3)), (4, 3)
    found, usual = model.decode(codes, grid).float(), plain(model, codes, grid).float()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = plain(model.float(), codes, grid)
    slack = 1.5 if DEVICE == "cuda" or dtype == torch.float16 else 6
    assert (found - exact).square().mean() < slack * (usual - exact).square().mean()
    assert serve == [1]


@cuda
@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_whole_pictures(dtype: torch.dtype, pictures: int) -> None:
    """Of VQ-16's full size, without and within a CUDA graph."""
    config, grid = VQConfig(), (24, 24)
    model = model_of(config, dtype)
    codes = codes_of(grid, pictures, config)
    assert fused_cuda.suits(model.decoder)
    assert not fused_cuda.suits(model_of().decoder)  # float32
    found, usual = model.decode(codes, grid), plain(model, codes, grid).float()
    outs: list[Tensor] = []
    device = torch.device("cuda", torch.cuda.current_device())
    CudaGraphCapturer(device)(lambda: outs.append(model.decode(codes, grid)))()
    torch.testing.assert_close(outs[-1], found, rtol=0, atol=0)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = plain(model.float(), codes, grid)
    assert (found.float() - exact).square().mean() < 1.5 * (usual - exact).square().mean()


@cuda
def test_memory_of_many_pictures_is_that_of_a_few() -> None:
    config, grid = VQConfig(), (24, 24)
    model = model_of(config, torch.bfloat16)
    model.decode(codes_of(grid, 1, config), grid)
    peaks = []
    for pictures in (1, 4, 32):
        codes = codes_of(grid, pictures, config)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model.decode(codes, grid)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    one, output = 2 * config.largest_map(grid), 2 * 3 * 384 * 384
    assert peaks[0] < 6 * one  # what is planned for
    assert peaks[1] < 6 * 4 * one
    assert peaks[2] < peaks[1] + 2 * 32 * output
