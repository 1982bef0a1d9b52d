"""Rotary position embedding (Su et al. 2021, "RoFormer", eq. 34), in the half-split layout of Llama.

B batch, T positions of this call, H heads, K dimensions of a head.
"""

import torch
from torch import Tensor

from ..kernels import dispatch


def rotary_table(positions_BT: Tensor, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine `[B, T, dim]`, always float32, whatever the weights are.

    They are computed from integer positions at each call and never stored in the weights' dtype:
    a bfloat16 `inv_freq` is wrong by whole turns after a few hundred positions.
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions_BT.device) / dim
    angles = positions_BT.float()[..., None] * (1.0 / theta**exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (k, k + K/2) by its angle, in float32; returns the dtype of `x`."""
    if dispatch.serves(x_BHTK):
        from ..kernels import prefill_fused  # needs Triton

        return prefill_fused.rotate(x_BHTK, table)
    cos, sin = (part[:, None] for part in table)
    x = x_BHTK.float()
    low, high = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-high, low), dim=-1) * sin).to(x_BHTK.dtype)


def rotate_pairs(x_BHTK: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """`rotate` of pairs side by side, (2 k, 2 k + 1), which come out half-split."""
    if dispatch.serves(x_BHTK):
        from ..kernels import prefill_fused  # needs Triton

        return prefill_fused.rotate(x_BHTK, table, pairs=True)
    return rotate(deinterleave(x_BHTK), table)


def deinterleave(x: Tensor) -> Tensor:
    """Dimensions in the order 0, 2, 4, ..., 1, 3, 5, ...: from pairs side by side to half-split ones."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
