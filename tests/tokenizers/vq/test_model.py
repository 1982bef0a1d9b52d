"""The VQ decoder's form for CPUs against the plain one."""

from dataclasses import replace

import pytest
import torch
from bifrons.tokenizers.vq.config import VQConfig
from bifrons.tokenizers.vq.model import VQModel
from bifrons.tokenizers.vq.operations import ChannelsLastOps, phase_kernels
from torch import Tensor
from torch.nn import functional as F

CONFIG = VQConfig(codebook_size=64, ch=32, ch_mult=(1, 2, 2), z_channels=16, num_res_blocks=1, norm_groups=8)
GRIDS = [(6, 6), (5, 9), (2, 3)]


@pytest.fixture
def model() -> VQModel:
    """With random norm weights: the initial ones and zeros hide mistakes."""
    torch.manual_seed(0)
    model = VQModel(CONFIG, encodes=False).requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.normal_(float(name.endswith("weight")), 0.3)
    return model


def codes_of(grid: tuple[int, int], images: int = 2) -> Tensor:
    return torch.randint(CONFIG.codebook_size, (images, grid[0] * grid[1]))


def latents(model: VQModel, codes_BT: Tensor, grid: tuple[int, int]) -> Tensor:
    return model.post_quant_conv(model.quantize.vectors()[codes_BT].transpose(1, 2).unflatten(2, grid))


@pytest.mark.parametrize("grid", GRIDS)
def test_decoding_equals_the_plain_form(model: VQModel, grid: tuple[int, int]) -> None:
    codes = codes_of(grid)
    expected = model.decoder(latents(model, codes, grid))
    pixels = model.decode(codes, grid)
    assert pixels.shape == expected.shape
    assert pixels.is_contiguous()
    assert not torch.equal(pixels, expected)  # the other form did run
    assert (pixels - expected).abs().max() < 1e-4 * (expected.max() - expected.min())


@pytest.mark.parametrize("grid", GRIDS)
def test_bfloat16_rounds_as_little_as_the_plain_form(model: VQModel, grid: tuple[int, int]) -> None:
    """Both are compared with float32."""
    model, codes = model.bfloat16(), codes_of(grid)
    z = latents(model, codes, grid)
    plain, pixels = model.decoder(z).float(), model.decode(codes, grid).float()
    exact = model.float().decoder(z.float())
    assert (pixels - exact).square().mean() < 1.5 * (plain - exact).square().mean()


@pytest.mark.parametrize("grid", GRIDS)
def test_an_image_does_not_depend_on_its_batch(model: VQModel, grid: tuple[int, int]) -> None:
    codes = codes_of(grid, 3)
    together = model.decode(codes, grid)
    for index in range(3):
        assert torch.equal(model.decode(codes[index : index + 1], grid)[0], together[index])


def test_new_weights_count_at_once(model: VQModel) -> None:
    """Nothing derived from weights is cached, whether they are replaced or changed in place."""
    codes = codes_of((6, 6))
    before = model.decode(codes, (6, 6))
    for weight in model.decoder.parameters():
        weight.mul_(1.1)
    changed = model.decode(codes, (6, 6))
    assert (changed - before).abs().max() > 1e-3
    torch.testing.assert_close(changed, model.decoder(latents(model, codes, (6, 6))), atol=1e-4, rtol=0)
    model.load_state_dict(
        {k: v / 1.1 if k.startswith("decoder") else v for k, v in model.state_dict().items()}, assign=True
    )
    torch.testing.assert_close(model.decode(codes, (6, 6)), before, atol=1e-4, rtol=0)


def test_gradients_take_the_plain_form(model: VQModel) -> None:
    codes = codes_of((6, 6))
    z = latents(model, codes, (6, 6))

    def supported(x: Tensor) -> bool:
        return ChannelsLastOps.supports(x, model.decoder.parameters())

    assert supported(z)
    assert not supported(z.double())
    assert not supported(z.to("meta"))
    with torch.autocast("cpu"):
        assert not supported(z)
    model.requires_grad_(True)
    assert not supported(z)
    model.decode(codes, (6, 6)).sum().backward()
    assert model.decoder.conv_in.weight.grad is not None
    with torch.no_grad():
        assert supported(z)
    with torch.inference_mode():
        model.decode(codes, (6, 6))


def test_phase_kernels_are_the_convolution_of_the_doubled_map() -> None:
    x, weight = torch.randn(1, 3, 5, 7), torch.randn(4, 3, 3, 3)
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0), weight, padding=1)
    for a, kernels in enumerate(phase_kernels(weight)):
        phases = F.conv2d(F.pad(x, (1, 1, 1 - a, a)), kernels)
        for b in (0, 1):
            phase = phases[:, 4 * b : 4 * b + 4, :, b : b + 7]
            torch.testing.assert_close(phase, expected[:, :, a::2, b::2], atol=1e-5, rtol=1e-5)


def test_codes_of_a_patch_encoder_depend_on_their_pixels_and_a_border_alone() -> None:
    torch.manual_seed(0)
    model = VQModel(replace(CONFIG, patch_width=16)).requires_grad_(False)
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    pixels[1, :, 5:15, 13:31] = pixels[0, :, 5:15, 13:31]  # codes of 4 pixels and a border of 3
    first, second = model.quant_conv(model.encoder(pixels))
    same = (first == second).all(0)
    assert same.shape == (8, 12)
    assert same[2:3, 4:7].all()
    assert same.sum() == 3
    assert model.encode(pixels).shape == (2, 96)
