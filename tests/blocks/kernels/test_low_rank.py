"""Low-rank products of rows with different adapters, against each row's own; in Triton's interpreter where
there is no GPU."""

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.kernels.low_rank import add_low_rank
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def plain(
    y_NO: Tensor, x_NI: Tensor, a_SPRI: Tensor, b_SOR: Tensor, slots_N: Tensor, widths: list[int]
) -> Tensor:
    """Each row with its own factors, rounded as `LowRankLinear` rounds."""
    out_NO = y_NO.clone()
    for row in (slots_N >= 0).nonzero()[:, 0].tolist():
        slot = int(slots_N[row])
        for a_RI, b_OR, part_O in zip(
            a_SPRI[slot], b_SOR[slot].split(widths), out_NO[row].split(widths), strict=True
        ):
            part_O += b_OR @ (a_RI @ x_NI[row])
    return out_NO


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "inputs", "widths", "rank", "slots"),
    [(1, 32, [48], 16, 2), (5, 1100, [40, 24, 24], 32, 4), (35, 72, [130, 130], 16, 2)],
)
def test_products_are_those_of_each_row_alone(
    rows: int, inputs: int, widths: list[int], rank: int, slots: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(rows)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    y_NO, x_NI = random(rows, sum(widths)), random(rows, inputs) / inputs**0.5
    a_SPRI, b_SOR = random(slots, len(widths), rank, inputs), random(slots, sum(widths), rank)
    slots_N = (torch.arange(rows) % (slots + 1) - 1).to(DEVICE)
    if rows == 1:
        slots_N += 2
    expected = plain(y_NO, x_NI, a_SPRI, b_SOR, slots_N, widths)
    found = y_NO.clone()
    add_low_rank(found, x_NI, a_SPRI, b_SOR, slots_N, widths)
    tolerance = 1e-5 if dtype == torch.float32 else 0.06
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * 4)
    assert torch.equal(found[slots_N < 0], y_NO[slots_N < 0])
    assert rows == 1 or not torch.equal(found, y_NO)
    for row in range(0, rows, 3):
        alone = y_NO[row : row + 1].clone()
        add_low_rank(alone, x_NI[row : row + 1], a_SPRI, b_SOR, slots_N[row : row + 1], widths)
        assert torch.equal(alone[0], found[row])
