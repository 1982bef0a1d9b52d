"""The VQ decoder's operations on CUDA in half precision, on channels-last maps.

Convolutions stay torch's, without their bias. What lies between them (bias, residual sum, norm, SiLU,
doubling of positions) are the Triton kernels of triton_kernels.py, each of which reads and writes a map once.

B images, T codes of an image, C channels, H and W height and width, P = H * W positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ...blocks.device import graph_capture_lock
from ...blocks.kernels import dispatch
from .operations import Norm, WeightBias

if TYPE_CHECKING:
    from .triton_kernels import Statistics

DTYPES = (torch.bfloat16, torch.float16)
"""In float32 the plain form stays: its images are what others are compared with."""

_MAX_SCORED_POSITIONS = 1024
"""Positions of a grid up to which all scores of attention are held at once."""


def supports(weights: Sequence[Tensor]) -> bool:
    """Whether the weights are where this is the better form, and no gradients are asked for."""
    first = weights[0]
    if first.dtype not in DTYPES or not dispatch.can_use_kernels(first, *weights):
        return False
    return all(weight.device == first.device and weight.dtype == first.dtype for weight in weights)


def _is_misplaced(weight: Tensor) -> bool:
    channels_last = weight.is_contiguous(memory_format=torch.channels_last)
    return weight.ndim == 4 and not (weight.requires_grad or channels_last)


@torch.no_grad()
def lay_out_channels_last(weights: Sequence[Tensor]) -> None:
    """Reorder the memory of convolution weights, in place and for good, to what their kernels read; values,
    names and shapes stay. Weights in training are left as they are, and reordered at every call."""
    if not any(map(_is_misplaced, weights)):
        return
    with graph_capture_lock:  # a thread that waited here finds nothing left to do
        for weight in filter(_is_misplaced, weights):
            with torch.inference_mode(weight.is_inference()):
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)


@dataclass
class FeatureMap:
    """A feature map `y + bias + residual`, whose sums may still be pending."""

    y_BCHW: Tensor
    bias_C: Tensor | None = None
    residual_BCHW: Tensor | None = None


class FusedOps:
    """The operations of one decoding; see `DecoderOps`."""

    def __init__(self) -> None:
        from . import triton_kernels  # needs Triton

        self.kernels = triton_kernels

    def begin(self, x_BCHW: Tensor) -> FeatureMap:
        return FeatureMap(_channels_last(x_BCHW))

    def normed_conv(self, x: FeatureMap, norm: Norm, conv: WeightBias) -> FeatureMap:
        """`conv(silu(norm(x)))`; also computes the pending sums of `x`."""
        statistics = self._settle(x)
        return _conv(self.kernels.normed(x.y_BCHW, statistics, norm), conv)

    def add_normed_conv(
        self, x: FeatureMap, y: FeatureMap, norm: Norm, conv: WeightBias, shortcut: WeightBias | None
    ) -> FeatureMap:
        """`conv(silu(norm(y))) + shortcut(x)`; overwrites y."""
        assert y.residual_BCHW is None
        statistics = self.kernels.statistics(y.y_BCHW)
        h = self.kernels.normed(y.y_BCHW, statistics, norm, y.bias_C, out=y.y_BCHW)
        out = _conv(h, conv)
        out.residual_BCHW = x.y_BCHW if shortcut is None else _to_map(_pointwise(_to_rows(x), shortcut), x)
        return out

    def attend(
        self, x: FeatureMap, norm: Norm, q: WeightBias, k: WeightBias, v: WeightBias, out: WeightBias
    ) -> FeatureMap:
        statistics = self._settle(x)
        h_BPC = _to_rows(FeatureMap(self.kernels.normed(x.y_BCHW, statistics, norm, silu=False)))
        attended_BPC = _attend(*(_pointwise(h_BPC, project) for project in (q, k, v)))
        weight, bias = out
        return FeatureMap(_to_map(F.linear(attended_BPC, weight.flatten(1)), x), bias, x.y_BCHW)

    def upsampled_conv(self, x: FeatureMap, conv: WeightBias) -> FeatureMap:
        return _conv(self.kernels.doubled(x.y_BCHW, x.bias_C, x.residual_BCHW), conv)

    def finish(self, x: FeatureMap, norm: Norm, conv: WeightBias) -> Tensor:
        statistics = self._settle(x)
        h = self.kernels.normed(x.y_BCHW, statistics, norm, out=x.y_BCHW)
        return F.conv2d(h, *conv, padding=1).contiguous()

    def _settle(self, x: FeatureMap) -> Statistics:
        """Compute the pending sums of a map in place; returns the map's statistics."""
        writes = x.bias_C is not None or x.residual_BCHW is not None
        statistics = self.kernels.statistics(x.y_BCHW, x.bias_C, x.residual_BCHW, writes=writes)
        x.bias_C = x.residual_BCHW = None
        return statistics


def _attend(q_BPC: Tensor, k_BPC: Tensor, v_BPC: Tensor) -> Tensor:
    """Single-head attention over all positions. At 576 positions of 512 channels torch's own takes 54 us on
    an H100, two matrix products 15; they hold all scores at once."""
    if q_BPC.shape[1] > _MAX_SCORED_POSITIONS:
        return F.scaled_dot_product_attention(q_BPC[:, None], k_BPC[:, None], v_BPC[:, None])[:, 0]
    scores_BPP = torch.bmm(q_BPC, k_BPC.transpose(1, 2)).float() * q_BPC.shape[2] ** -0.5
    return torch.bmm(scores_BPP.softmax(-1).to(v_BPC.dtype), v_BPC)


def _channels_last(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def _conv(x_BCHW: Tensor, conv: WeightBias) -> FeatureMap:
    """A 3 x 3 convolution whose bias is still pending: torch would add it in a pass of its own."""
    weight, bias = conv
    return FeatureMap(_channels_last(F.conv2d(x_BCHW, weight, padding=1)), bias)


def _to_rows(x: FeatureMap) -> Tensor:
    """`[B, P, C]`."""
    return x.y_BCHW.flatten(2).transpose(1, 2)


def _to_map(x_BPC: Tensor, like: FeatureMap) -> Tensor:
    """`[B, C, H, W]`."""
    return x_BPC.transpose(1, 2).unflatten(2, like.y_BCHW.shape[2:])


def _pointwise(x_BPC: Tensor, conv: WeightBias) -> Tensor:
    """A 1 x 1 convolution as the matrix product that it is."""
    weight, bias = conv
    return F.linear(x_BPC, weight.flatten(1), bias)
