"""Convolutions by 3 x 3 kernels with half the products: four rows from six, F(4, 3) of Lavin & Gray 2015
("Fast Algorithms for Convolutional Neural Networks"), in one direction.

The sums before and after the products cost about half a digit, which bfloat16 has not to spare.
K and O channels in and out, R rows, a multiple of four, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 4
"""That are computed together: R is a multiple."""

_KERNELS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


def row_kernels(weight_OK33: Tensor) -> list[Tensor]:
    """The six kernels `[O, K, 1, 3]` that take the place of three rows of weights."""
    sums = torch.einsum("jr,okrs->joks", weight_OK33.new_tensor(_KERNELS), weight_OK33)
    return [kernel.contiguous(memory_format=torch.channels_last) for kernel in sums[:, :, :, None]]


def conv_rows(x_1KHW: Tensor, kernels: list[Tensor], bias: Tensor | None) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=(0, 1))` of R + 2 rows, channels last: `[1, O, R, W]`."""
    x_HWK = x_1KHW[0].permute(1, 2, 0)
    count, width = (x_HWK.shape[0] - 2) // ROWS, x_HWK.shape[1]
    last = ROWS * (count - 1) + 1
    mixed = _mix([x_HWK[i : i + last : ROWS] for i in range(6)])
    products = []
    for i, (rows_nWK, kernel) in enumerate(zip(mixed, kernels, strict=True)):
        # What is in the second product is once in each of the four rows.
        found = F.conv2d(rows_nWK[None].permute(0, 3, 1, 2), kernel, bias if i == 1 else None, padding=(0, 1))
        products.append(found[0].permute(1, 2, 0))
    out_n4WO = x_1KHW.new_empty(count, ROWS, width, kernels[0].shape[0])
    _unmix(products, out_n4WO)
    return out_n4WO.flatten(0, 1)[None].permute(0, 3, 1, 2)


def _mix(d: list[Tensor]) -> list[Tensor]:
    """Six rows to the six sums that are multiplied."""
    even, odd = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    sums = [even + odd, even - odd]
    even, odd = torch.sub(d[4], d[2], out=even), torch.sub(d[3], d[1], out=odd)
    sums += [torch.add(even, odd, alpha=2), torch.sub(even, odd, alpha=2)]
    first, last = (d[0] - d[2]).mul_(4).add_(even), (d[5] - d[3]).sub_(odd, alpha=4)
    return [first, *sums, last]


def _unmix(m: list[Tensor], out_n4WO: Tensor) -> None:
    """Six products to four rows."""
    plus, minus, plus2, minus2 = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    y = out_n4WO.unbind(1)
    torch.add(m[0].add_(plus), plus2, out=y[0])
    torch.add(minus, minus2, alpha=2, out=y[1])
    torch.add(plus, plus2, alpha=4, out=y[2])
    torch.add(m[5].add_(minus), minus2, alpha=8, out=y[3])
