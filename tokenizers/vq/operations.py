"""Other ways to compute the VQ decoder than its modules' `forward`: their interface, and the one for CPUs.

`DecoderOps` is what model.py's blocks call; fused_cuda.py implements it for GPUs. Operations take weights,
not modules.

B images, C channels, H and W height and width, G groups of a norm, K and O channels in and out.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

WeightBias = tuple[Tensor, Tensor]
"""Weight and bias of a convolution."""

NORM_EPS = 1e-6
"""Of every group norm of VQ-16."""


class Norm(NamedTuple):
    """A group norm: weight and bias per channel, and the number of groups."""

    weight: Tensor
    bias: Tensor
    groups: int


class DecoderOps(Protocol):
    """The operations of one decoding. `Any` is a feature map in a form of the implementation's own."""

    def begin(self, x_BCHW: Tensor, /) -> Any:
        """The first feature map."""
        ...

    def normed_conv(self, x: Any, norm: Norm, conv: WeightBias, /) -> Any:
        """`conv(silu(norm(x)))` with a 3 x 3 kernel."""
        ...

    def add_normed_conv(
        self, x: Any, y: Any, norm: Norm, conv: WeightBias, shortcut: WeightBias | None, /
    ) -> Any:
        """`conv(silu(norm(y))) + shortcut(x)`; without a shortcut, `+ x`."""
        ...

    def attend(
        self, x: Any, norm: Norm, q: WeightBias, k: WeightBias, v: WeightBias, out: WeightBias, /
    ) -> Any:
        """`x` plus single-head attention over all positions of `norm(x)`."""
        ...

    def upsampled_conv(self, x: Any, conv: WeightBias, /) -> Any:
        """`conv` of `x` with every position doubled in both directions (nearest)."""
        ...

    def finish(self, x: Any, norm: Norm, conv: WeightBias, /) -> Tensor:
        """`conv(silu(norm(x)))`, contiguous `[B, 3, H, W]`."""
        ...


class ChannelsLastOps:
    """The operations on a CPU without gradients: channels-last maps `[1, C, H, W]`, one image at a time.

    For VQ-16 at 384 pixels on 2 threads they took 5.8 s of CPU time where the plain form took 6.9 (float32),
    and 1.5 s in place of 3.8 (bfloat16).
    """

    @staticmethod
    def supports(x: Tensor, weights: Iterable[Tensor]) -> bool:
        """Whether this form serves: on a CPU, without gradients and autocast, all of one dtype."""
        weights = list(weights)
        if (
            x.device.type != "cpu"
            or x.dtype not in (torch.bfloat16, torch.float32)
            or torch.is_autocast_enabled("cpu")
        ):
            return False
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights)):
            return False
        return all(weight.device == x.device and weight.dtype == x.dtype for weight in weights)

    def begin(self, x_1CHW: Tensor) -> Tensor:
        return _channels_last(x_1CHW)

    def normed_conv(self, x_1CHW: Tensor, norm: Norm, conv: WeightBias) -> Tensor:
        weight, bias = conv
        return F.conv2d(F.silu(_group_norm(x_1CHW, norm)), _channels_last(weight), bias, padding=1)

    def add_normed_conv(
        self, x_1CHW: Tensor, y_1CHW: Tensor, norm: Norm, conv: WeightBias, shortcut: WeightBias | None
    ) -> Tensor:
        residual = x_1CHW if shortcut is None else F.conv2d(x_1CHW, *shortcut)
        return self.normed_conv(y_1CHW, norm, conv).add_(residual)

    def attend(
        self, x_1CHW: Tensor, norm: Norm, q: WeightBias, k: WeightBias, v: WeightBias, out: WeightBias
    ) -> Tensor:
        h = F.group_norm(x_1CHW, norm.groups, norm.weight, norm.bias, NORM_EPS)
        q_, k_, v_ = (F.conv2d(h, *project).flatten(2).transpose(1, 2)[:, None] for project in (q, k, v))
        attended = F.scaled_dot_product_attention(q_, k_, v_)[:, 0].transpose(1, 2).reshape(x_1CHW.shape)
        return _channels_last(x_1CHW + F.conv2d(attended, *out))

    def upsampled_conv(self, x_1CHW: Tensor, conv: WeightBias) -> Tensor:
        """Of the 3 x 3 positions under the kernel only 2 x 2 differ, so each of the four output positions of
        an input position has a kernel of 2 x 2 sums of weights: 4 products in place of 9."""
        weight, bias = conv
        height, width = x_1CHW.shape[2:]
        y_HaWbO = x_1CHW.new_empty(height, 2, width, 2, len(weight))
        for a, kernel in enumerate(phase_kernels(weight)):
            rows = F.pad(x_1CHW, (0, 0, 1 - a, a))
            phases = F.conv2d(rows, kernel, bias.repeat(2), padding=(0, 1))
            phases_HWbO = phases[0].permute(1, 2, 0).unflatten(2, (2, -1))
            for b in (0, 1):
                y_HaWbO[:, a, :, b] = phases_HWbO[:, b : width + b, b]
        return y_HaWbO.view(1, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)

    def finish(self, x_1CHW: Tensor, norm: Norm, conv: WeightBias) -> Tensor:
        return self.normed_conv(x_1CHW, norm, conv).contiguous()


def phase_kernels(weight_OK33: Tensor) -> list[Tensor]:
    """Kernels `[2 O, K, 2, 2]` of the even rows and of the odd: those of even columns, then of odd ones."""

    def pairs(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        first, second, third = weight.unbind(dim)
        return torch.stack((first, second + third), dim), torch.stack((first + second, third), dim)

    return [
        torch.cat(pairs(rows, 3)).to(weight_OK33.dtype, memory_format=torch.channels_last)
        for rows in pairs(weight_OK33.float(), 2)
    ]


def _group_norm(x_1CHW: Tensor, norm: Norm) -> Tensor:
    """Group norm by the statistics of each channel, combined in float32 to those of its group."""
    mean_C, var_C = torch.batch_norm_update_stats(x_1CHW, None, None, 0.0)
    mean_GC, var_GC = (t.float().unflatten(0, (norm.groups, -1)) for t in (mean_C, var_C))
    mean_G1 = mean_GC.mean(1, keepdim=True)
    var_G1 = (var_GC + (mean_GC - mean_G1).square()).mean(1, keepdim=True)
    mean_C, var_C = (t.expand_as(mean_GC).reshape(-1) for t in (mean_G1, var_G1))
    return F.batch_norm(x_1CHW, mean_C, var_C, norm.weight.float(), norm.bias.float(), eps=NORM_EPS)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
