"""The image tokenizer's decoder in strips against its plain form."""

import pytest
import torch
from bifrons.tokenizers.vq import strips
from bifrons.tokenizers.vq.model import VQConfig, VQModel
from bifrons.tokenizers.vq.strips import phase_kernels, suits
from bifrons.tokenizers.vq.winograd import conv_rows, row_kernels
from torch import Tensor
from torch.nn import functional as F

CONFIG = VQConfig(codebook_size=64, ch=32, ch_mult=(1, 2, 2), z_channels=16, num_res_blocks=1)
GRIDS = [(6, 6), (5, 9), (2, 3)]


@pytest.fixture
def model() -> VQModel:
    """With norms that do something."""
    torch.manual_seed(0)
    model = VQModel(CONFIG, encodes=False).requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.normal_(float(name.endswith("weight")), 0.3)
    return model


@pytest.fixture(params=[2**8, 2**11, 2**19])
def strip_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of one to all rows, halved products where the height allows."""
    monkeypatch.setattr(strips, "NUMBERS_A_THREAD", request.param)
    monkeypatch.setattr(strips, "WINOGRAD_PLACES", 1)
    monkeypatch.setattr(strips, "WINOGRAD_CHANNELS", 1)


def codes_of(grid: tuple[int, int], pictures: int = 2) -> Tensor:
    return torch.randint(CONFIG.codebook_size, (pictures, grid[0] * grid[1]))


def before_decoder(model: VQModel, codes_BT: Tensor, grid: tuple[int, int]) -> Tensor:
    return model.post_quant_conv(model.quantize.vectors()[codes_BT].transpose(1, 2).unflatten(2, grid))


@pytest.mark.usefixtures("strip_sizes")
@pytest.mark.parametrize("grid", GRIDS)
def test_strips_give_what_the_plain_form_gives(model: VQModel, grid: tuple[int, int]) -> None:
    codes = codes_of(grid)
    expected = model.decoder(before_decoder(model, codes, grid))
    found = model.decode(codes, grid)
    assert found.shape == expected.shape
    assert found.is_contiguous()
    assert not torch.equal(found, expected)  # the other form did run
    assert (found - expected).abs().max() < 1e-4 * (expected.max() - expected.min())


@pytest.mark.usefixtures("strip_sizes")
@pytest.mark.parametrize("grid", GRIDS)
def test_bfloat16_strips_round_as_little_as_the_plain_form(model: VQModel, grid: tuple[int, int]) -> None:
    """Both are compared with float32."""
    model, codes = model.bfloat16(), codes_of(grid)
    z = before_decoder(model, codes, grid)
    plain, found = model.decoder(z).float(), model.decode(codes, grid).float()
    exact = model.float().decoder(z.float())
    assert (found - exact).square().mean() < 1.5 * (plain - exact).square().mean()


@pytest.mark.usefixtures("strip_sizes")
def test_a_picture_does_not_depend_on_its_company(model: VQModel) -> None:
    codes = codes_of((6, 6), 3)
    together = model.decode(codes, (6, 6))
    for index in range(3):
        assert torch.equal(model.decode(codes[index : index + 1], (6, 6))[0], together[index])


def test_new_weights_count_at_once(model: VQModel) -> None:
    """Nothing that is derived from weights is kept: neither of replaced nor of changed ones."""
    codes = codes_of((6, 6))
    before = model.decode(codes, (6, 6))
    for weight in model.decoder.parameters():
        weight.mul_(1.1)
    changed = model.decode(codes, (6, 6))
    assert (changed - before).abs().max() > 1e-3
    torch.testing.assert_close(
        changed, model.decoder(before_decoder(model, codes, (6, 6))), atol=1e-4, rtol=0
    )
    model.load_state_dict(
        {k: v / 1.1 if k.startswith("decoder") else v for k, v in model.state_dict().items()}, assign=True
    )
    torch.testing.assert_close(model.decode(codes, (6, 6)), before, atol=1e-4, rtol=0)


def test_gradients_take_the_plain_form(model: VQModel) -> None:
    codes = codes_of((6, 6))
    z = before_decoder(model, codes, (6, 6))
    assert suits(z, model.decoder)
    assert not suits(z.double(), model.decoder)
    assert not suits(z.to("meta"), model.decoder)
    with torch.autocast("cpu"):
        assert not suits(z, model.decoder)
    model.requires_grad_(True)
    assert not suits(z, model.decoder)
    model.decode(codes, (6, 6)).sum().backward()
    assert model.decoder.conv_in.weight.grad is not None
    with torch.no_grad():
        assert suits(z, model.decoder)
    with torch.inference_mode():
        model.decode(codes, (6, 6))


def test_kernels_of_phases_are_the_convolution_of_the_doubled_map() -> None:
    x, weight = torch.randn(1, 3, 5, 7), torch.randn(4, 3, 3, 3)
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0), weight, padding=1)
    for a, kernels in enumerate(phase_kernels(weight)):
        found = F.conv2d(F.pad(x, (1, 1, 1 - a, a)), kernels)
        for b in (0, 1):
            phase = found[:, 4 * b : 4 * b + 4, :, b : b + 7]
            torch.testing.assert_close(phase, expected[:, :, a::2, b::2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [None, torch.randn(5)])
def test_rows_by_winograd(bias: Tensor | None) -> None:
    x = torch.randn(1, 3, 14, 6).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(5, 3, 3, 3)
    expected = F.conv2d(x, weight, bias, padding=(0, 1))
    found = conv_rows(x, row_kernels(weight), bias)
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=1e-5)
