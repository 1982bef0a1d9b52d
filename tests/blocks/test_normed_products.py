"""Products that add to a sum and leave its norm to the next ones; in Triton's interpreter without a GPU."""

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.kernel_products import Normed, add_product, adds, gated_product, product, serves
from bifrons.blocks.product_tiles import MOST_ROWS, plan_tile
from bifrons.blocks.quantized_weight import QuantizedWeight, Weight
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

pytestmark = pytest.mark.usefixtures("few_blocks")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-5


def made(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stored(weight: Tensor, kind: str, dtype: torch.dtype) -> tuple[Weight, Tensor]:
    """A weight in a kind, and its numbers in float64."""
    if kind == "plain":
        plain = weight.to(DEVICE, dtype)
        return Weight(plain), plain.double()
    quantized = QuantizedWeight(kind, tuple(weight.shape))
    for leaf, tensor in quantized.encode(weight).items():
        setattr(quantized, leaf, tensor)
    quantized = quantized.to(DEVICE)
    exact = quantized.decode(torch.float32).double()
    return Weight(quantized.codes, quantized.scale, quantized.zero, kind), exact


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("plain", torch.bfloat16),
        ("int8", torch.float32),
        ("int4", torch.float32),
        ("fp8", torch.float32),
        ("int8", torch.bfloat16),
    ],
)
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_a_sum_and_its_norm_between_two_products(kind: str, dtype: torch.dtype, rows: int) -> None:
    inner, width, outputs = 64, 96, 72
    first, first_exact = stored(made(0, width, inner) / 8, kind, dtype)
    second, second_exact = stored(made(1, 2 * outputs, width) / 8, kind, dtype)
    x, residual = made(2, rows, inner).to(DEVICE, dtype), 3 * made(3, rows, width).to(DEVICE, dtype)
    norm = nn.RMSNorm(width, EPS).to(DEVICE, dtype)
    norm.weight.data.normal_(generator=torch.Generator(DEVICE).manual_seed(4))
    assert adds(x, first)
    assert serves(residual, second)
    total, normed = add_product(x, first, residual, norm.weight.data, EPS)
    wanted = residual.double() + x.double() @ first_exact.T
    room = 4 * torch.finfo(dtype).eps
    assert total.dtype == normed.rows.dtype == dtype
    torch.testing.assert_close(total.double(), wanted, rtol=room, atol=2 * room)
    assert normed.squares is not None
    tile = plan_tile(kind, inner, width, False, rows)
    assert normed.squares.shape == (-(-width // tile.outputs), rows)
    squares = total.double().square().sum(-1)
    torch.testing.assert_close(normed.squares.sum(0).double(), squares, rtol=1e-5, atol=0)
    rows_normed = rms_norm(total.double(), (width,), norm.weight.double(), EPS)
    y = rows_normed @ second_exact.T
    room *= y.abs().max().item()
    torch.testing.assert_close(product(normed, second).double(), y, rtol=0, atol=room)
    gate, up = y.chunk(2, dim=-1)
    gated = gated_product(normed, second).double()
    torch.testing.assert_close(gated, silu(gate) * up, rtol=0, atol=room * up.abs().max().item())


def test_float16_keeps_norms_apart() -> None:
    """Sums of hundreds times a norm's weight leave its range."""
    x, weight = made(0, 2, 64).half(), Weight(made(1, 32, 64).half())
    assert serves(x, weight)
    assert not adds(x, weight)


def test_rows_that_wait_for_their_norm_are_not_taken_as_normed() -> None:
    x = made(0, MOST_ROWS + 1, 64).bfloat16()
    with pytest.raises(AssertionError):
        product(Normed(x, torch.ones(1, len(x))), Weight(made(1, 32, 64).bfloat16()))
