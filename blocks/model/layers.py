"""Layers that all models share: linear, RMSNorm, rotary position embedding, SwiGLU and the MLP projector.

B rows, T positions of this call, H heads, K dimensions of a head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..kernels import cpu_onednn, dispatch
from ..kernels.batch_invariant import by_inputs, by_outputs, linear, should_be_by_inputs

_PREPACK_AFTER = 4  # uses of a weight; prepacking takes about as long as ten products


class Linear(nn.Linear):
    """Batch-invariant `nn.Linear`, which stores its weight by inputs where that makes it so, and prepacks it
    for oneDNN where that is faster.

    A weight that is repeatedly used for few rows is prepacked in place. Copying, moving, saving or training
    the layer restores the plain weight first. Code that reads `weight` itself must set `prepacks` to False or
    call `unpack` first.
    """

    prepacks = True
    _uses = 0

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if weight.is_mkldnn:
            return cpu_onednn.linear(input, weight, self.bias)
        if self.prepacks and not hasattr(self, "_hf_hook"):  # accelerate moves weights
            if should_be_by_inputs(input, weight):
                weight = self.weight = nn.Parameter(by_inputs(weight), requires_grad=False)
            if cpu_onednn.benefits(input, weight):
                self._uses += 1
                if self._uses > _PREPACK_AFTER:
                    self.weight = nn.Parameter(cpu_onednn.prepack(weight), requires_grad=False)
        return linear(input, weight, self.bias)

    def unpack(self) -> None:
        """Restore the plain weight and start counting uses anew."""
        self._uses = 0
        if self.weight.is_mkldnn or not self.weight.is_contiguous():
            weight = cpu_onednn.unpack(self.weight) if self.weight.is_mkldnn else by_outputs(self.weight)
            self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)

    def train(self, mode: bool = True) -> "Linear":
        if mode:
            self.unpack()
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        self.unpack()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination, prefix, keep_vars):  # type: ignore[no-untyped-def]
        self.unpack()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.unpack()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, object]:
        self.unpack()
        return dict(self.__dict__)


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last dimension (Zhang and Sennrich 2019, "Root Mean Square Layer
    Normalization", eq. 4).

    Normalizes in float32 and casts down before multiplying by the weight: Llama's order, which matters in
    half precision.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = x.float()
        normed = normed * torch.rsqrt(normed.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


def rotary_table(
    positions_BT: Tensor,
    dim: int,
    theta: float,
    frequencies: Sequence[float] | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[B, T, dim]` of rotary position embedding (Su et al. 2021, "RoFormer", eq. 34), in
    Llama's half-split layout, times `scale`. `frequencies` are angles per position, `dim / 2` of them, in
    place of those that `theta` gives.

    Always computed in float32 from integer positions and never stored in the weights' dtype: with a bfloat16
    `inv_freq`, angles are off by whole turns after a few hundred positions.
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions_BT.device) / dim
    turns = 1.0 / theta**exponents if frequencies is None else exponents.new_tensor(frequencies)
    angles = positions_BT.float()[..., None] * turns
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * scale, angles.sin() * scale


def rotate(x_BHTK: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (k, k + K/2) by its angle, in float32; returns the dtype of `x`."""
    if dispatch.can_use_kernels(x_BHTK.detach()):
        from ..kernels import prefill_fused  # needs Triton

        return prefill_fused.rotate(x_BHTK, table)
    cos, sin = (part[:, None] for part in table)
    x = x_BHTK.float()
    low, high = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-high, low), dim=-1) * sin).to(x_BHTK.dtype)


def rotate_pairs(x_BHTK: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """`rotate` for interleaved pairs (2 k, 2 k + 1); the result is half-split."""
    if dispatch.can_use_kernels(x_BHTK.detach()):
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
    """Maps vision features to the language model's width (`mlp_gelu` in the official configs): `depth` linear
    layers with exact GELU between them.

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
            x = F.gelu(x) if isinstance(layer, nn.GELU) else layer(x)
        return x
