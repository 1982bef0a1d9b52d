"""The vision encoder: its patches as rows of a product, and on CUDA the same bits in any batch."""

import pytest
import torch
import torch.nn.functional as F
from bifrons.blocks.kernels.batch_invariant import use_batch_invariant_libraries
from bifrons.blocks.model.siglip import KNOWN_TOWERS, SiglipConfig, build_siglip, embed_patches

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")


@pytest.mark.parametrize(("side", "patch"), [(64, 16), (60, 14)])  # 14: pixels are left over
def test_patches_are_embedded_as_by_a_convolution(side: int, patch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 3, side, side, generator=generator, dtype=torch.float64)
    weight = torch.randn(24, 3, patch, patch, generator=generator, dtype=torch.float64)
    bias = torch.randn(24, generator=generator, dtype=torch.float64)
    expected = F.conv2d(pixels, weight, bias, stride=patch).flatten(2).transpose(1, 2)
    found = embed_patches(pixels, weight, bias)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected)
    without = embed_patches(pixels, weight.to(memory_format=torch.channels_last), None)
    torch.testing.assert_close(without, expected - bias)


@on_cuda
@pytest.mark.parametrize("config", KNOWN_TOWERS.values(), ids=KNOWN_TOWERS)
def test_an_image_is_encoded_the_same_in_any_batch(config: SiglipConfig, draw_weights) -> None:
    assert use_batch_invariant_libraries(torch.device("cuda"))
    tower = build_siglip(config)
    draw_weights(tower)
    tower.eval().requires_grad_(False).to("cuda", torch.bfloat16)
    torch.manual_seed(0)
    pixels = torch.rand(16, 3, config.image_size, config.image_size, device="cuda", dtype=torch.bfloat16)
    together = tower(2 * pixels - 1)
    for count in range(1, 16):
        assert torch.equal(tower(2 * pixels[:count] - 1), together[:count])
