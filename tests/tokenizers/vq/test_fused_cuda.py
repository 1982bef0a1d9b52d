"""The VQ decoder by fused operations; in Triton's interpreter where there is no GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.graphs.cuda_graphs import CudaGraphCapturer
from bifrons.blocks.kernels import dispatch
from bifrons.tokenizers.vq import fused_cuda
from bifrons.tokenizers.vq.config import VQConfig
from bifrons.tokenizers.vq.model import VQModel
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
cuda = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
CONFIG = VQConfig(codebook_size=64, ch=32, ch_mult=(1, 2), z_channels=16, num_res_blocks=0)
GRIDS = [(5, 9), (2, 3)] + [(1, 1)] * (DEVICE == "cpu")  # torch's attention has no kernel for one position


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def model_of(config: VQConfig = CONFIG, dtype: torch.dtype = torch.float32) -> VQModel:
    """With random norm weights: the initial ones and zeros hide mistakes."""
    torch.manual_seed(0)
    model = VQModel(config, encodes=False).requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.normal_(float(name.endswith("weight")), 0.3)
    return model.to(DEVICE, dtype)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets kernels serve, in float32 too; the sizes of the batches that they decode."""
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: True)
    monkeypatch.setattr(fused_cuda, "DTYPES", (torch.float32, torch.float16, torch.bfloat16))
    calls: list[int] = []
    finish = fused_cuda.FusedOps.finish

    def count(self: Any, x: Any, *args: Any) -> Tensor:
        calls.append(len(x.y_BCHW))
        return finish(self, x, *args)

    monkeypatch.setattr(fused_cuda.FusedOps, "finish", count)
    return calls


def codes_of(grid: tuple[int, int], images: int = 1, config: VQConfig = CONFIG) -> Tensor:
    return torch.randint(config.codebook_size, (images, grid[0] * grid[1])).to(DEVICE)


def plain(model: VQModel, codes_BT: Tensor, grid: tuple[int, int]) -> Tensor:
    book = model.quantize.vectors()[codes_BT].transpose(1, 2)
    return model.decoder(model.post_quant_conv(book.unflatten(2, grid)))


@pytest.mark.parametrize("grid", GRIDS)
def test_decoding_equals_the_plain_form(grid: tuple[int, int], batches: list[int]) -> None:
    model, codes = model_of(), codes_of(grid)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected, actual = plain(model, codes, grid), model.decode(codes, grid)
    assert batches == [1]
    assert actual.shape == expected.shape
    assert actual.is_contiguous()
    assert (actual - expected).abs().max() < 1e-4 * (expected.max() - expected.min())


def test_weights_are_reordered_once(batches: list[int]) -> None:
    """Once, and only their memory order changes."""
    model = model_of()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    first = model.decode(codes := codes_of((1, 2)), (1, 2))
    addresses = [weight.data_ptr() for weight in model.parameters()]
    assert model.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(model.decode(codes, (1, 2)), first)
    assert addresses == [weight.data_ptr() for weight in model.parameters()]
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert batches == [1, 1]


def test_weights_of_inference_mode_are_reordered(batches: list[int]) -> None:
    with torch.inference_mode():
        model = model_of()
        model.decode(codes_of((1, 1)), (1, 1))
        assert model.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        model.decode(codes_of((1, 1)), (1, 1))
    assert batches == [1, 1]


def test_new_weights_count_at_once(batches: list[int]) -> None:
    model, codes = model_of(), codes_of((1, 2))
    before = model.decode(codes, (1, 2))
    for weight in model.decoder.parameters():
        weight.mul_(1.1)
    changed = model.decode(codes, (1, 2))
    assert (changed - before).abs().max() > 1e-3
    state = {k: v / 1.1 if k.startswith("decoder") else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    torch.testing.assert_close(model.decode(codes, (1, 2)), before, atol=1e-3, rtol=0)
    assert len(batches) == 3


def test_weights_in_training_keep_their_memory(batches: list[int]) -> None:
    model, codes = model_of().requires_grad_(True), codes_of((1, 2))
    addresses = [weight.data_ptr() for weight in model.parameters()]
    with torch.no_grad():
        actual = model.decode(codes, (1, 2))
    assert batches == [1]
    assert addresses == [weight.data_ptr() for weight in model.parameters()]
    expected = model.decode(codes, (1, 2))
    expected.sum().backward()
    assert model.decoder.conv_in.weight.grad is not None
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)
    model.decoder.requires_grad_(False)
    model.decode(codes, (1, 2)).sum().backward()
    assert model.quantize.embedding.weight.grad is not None
    model.requires_grad_(False)
    with torch.autocast(DEVICE, torch.bfloat16):
        model.decode(codes, (1, 2))
    assert batches == [1]


def test_images_are_decoded_one_at_a_time(batches: list[int]) -> None:
    grid, model = (2, 3), model_of()
    codes = codes_of(grid, 3)
    actual = model.decode(codes, grid)
    assert batches == [1, 1, 1]
    assert torch.equal(actual[1:2], model.decode(codes[1:2], grid))
    torch.testing.assert_close(actual, plain(model, codes, grid), atol=1e-3, rtol=0)
    if DEVICE == "cuda":  # the form for CPUs has nothing to take statistics of
        assert model.decode(codes[:0], grid).shape == (0, 3, 4, 6)


def test_the_largest_map() -> None:
    """Of VQ-16 for 384 pixels: 128 channels at full size, 256 at half of it."""
    assert VQConfig().largest_map((24, 24)) == 128 * 384 * 384
    assert CONFIG.largest_map((2, 3)) == 64 * 4 * 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_as_little_as_the_plain_form(dtype: torch.dtype, batches: list[int]) -> None:
    """Both are compared with float32. The interpreter cuts off where a GPU rounds."""
    model, codes, grid = model_of(dtype=dtype), codes_of((4, 3)), (4, 3)
    actual, usual = model.decode(codes, grid).float(), plain(model, codes, grid).float()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = plain(model.float(), codes, grid)
    slack = 1.5 if DEVICE == "cuda" or dtype == torch.float16 else 6
    assert (actual - exact).square().mean() < slack * (usual - exact).square().mean()
    assert batches == [1]


@cuda
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_whole_images(dtype: torch.dtype, images: int) -> None:
    """Of VQ-16's full size, without and within a CUDA graph."""
    config, grid = VQConfig(), (24, 24)
    model = model_of(config, dtype)
    codes = codes_of(grid, images, config)
    assert fused_cuda.supports(list(model.decoder.parameters()))
    assert not fused_cuda.supports(list(model_of().decoder.parameters()))  # float32
    actual, usual = model.decode(codes, grid), plain(model, codes, grid).float()
    outs: list[Tensor] = []
    device = torch.device("cuda", torch.cuda.current_device())
    CudaGraphCapturer(device)(lambda: outs.append(model.decode(codes, grid)))()
    torch.testing.assert_close(outs[-1], actual, rtol=0, atol=0)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = plain(model.float(), codes, grid)
    assert (actual.float() - exact).square().mean() < 1.5 * (usual - exact).square().mean()


@cuda
def test_memory_of_many_images_is_that_of_one() -> None:
    config, grid = VQConfig(), (24, 24)
    model = model_of(config, torch.bfloat16)
    model.decode(codes_of(grid, 1, config), grid)
    peaks = []
    for images in (1, 32):
        codes = codes_of(grid, images, config)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model.decode(codes, grid)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    one, output = 2 * config.largest_map(grid), 2 * 3 * 384 * 384
    assert peaks[0] < 6 * one  # what the memory plan assumes
    assert peaks[1] < peaks[0] + 2 * 32 * output
