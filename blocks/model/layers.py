"""Layers that all models share: RMSNorm, rotary position embedding, SwiGLU feed-forward and the MLP
projector.

B rows, T positions of this call, H heads, K dimensions of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..kernels import dispatch
from ..kernels.batch_invariant import Linear


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last dimension (Zhang and Sennrich 2019, "Root Mean Square Layer
    Normalization", eq. 4).

    Statistics are in float32, cast down before the product with the weight. That order is Llama's, and it
    matters in half precision.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = x.float()
        normed = normed * torch.rsqrt(normed.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


def rotary_table(positions_BT: Tensor, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[B, T, dim]` of rotary position embedding (Su et al. 2021, "RoFormer", eq. 34), for
    the half-split layout of Llama.

    Always float32 and computed from integer positions at each call, never stored in the dtype of the weights:
    with a bfloat16 `inv_freq` the angles are wrong by whole turns after a few hundred positions.
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions_BT.device) / dim
    angles = positions_BT.float()[..., None] * (1.0 / theta**exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (k, k + K/2) by its angle, in float32; returns the dtype of `x`."""
    if dispatch.serves(x_BHTK):
        from ..kernels import prefill_fused  # needs Triton

        return prefill_fused.rotate(x_BHTK, table)
    cos, sin = (part[:, None] for part in table)
    x = x_BHTK.float()
    low, high = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-high, low), dim=-1) * sin).to(x_BHTK.dtype)


def rotate_pairs(x_BHTK: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """`rotate` for interleaved pairs (2 k, 2 k + 1); the result is half-split."""
    if dispatch.serves(x_BHTK):
        from ..kernels import prefill_fused  # needs Triton

        return prefill_fused.rotate(x_BHTK, table, pairs=True)
    return rotate(deinterleave(x_BHTK), table)


def deinterleave(x: Tensor) -> Tensor:
    """Reorder the last dimension to 0, 2, 4, ..., 1, 3, 5, ...: from interleaved to half-split pairs."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, "GLU Variants Improve Transformer"): `down(silu(gate(x)) * up(x))`."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MlpProjector(nn.Module):
    """From a vision tower's features to the language model's width: `mlp_gelu` of the official configs,
    `depth` linear layers with exact GELU between them.

    Linear layers have even indices, as in the checkpoints (`layers.0`, `layers.2`, ...).
    """

    def __init__(self, input_dim: int, n_embed: int, depth: int = 2) -> None:
        super().__init__()
        if depth < 1:
            raise ConfigError(f"projector depth is {depth}; accepted: 1 or more")
        layers: list[nn.Module] = [Linear(input_dim, n_embed)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), Linear(n_embed, n_embed)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) if isinstance(layer, nn.Linear) else F.gelu(x)
        return x
