"""The image tokenizer's decoder on CUDA in half precision: what its modules compute, in channels-last maps.

Convolutions stay torch's, without their bias. What lies between them (bias, residual sum, norm, SiLU,
doubling of places) are the Triton kernels of triton_kernels.py, each of which reads and writes a map once.

B pictures, T codes of a picture, C channels, H and W height and width, P = H * W places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...blocks.engine.cuda_graphs import graph_capture_lock
from ...blocks.kernels import dispatch

if TYPE_CHECKING:
    from .model import AttnBlock
    from .triton_kernels import Statistics

DTYPES = (torch.bfloat16, torch.float16)
"""In float32 the plain form stays: its pictures are what others are compared with."""

NUMBERS_AT_ONCE = 80_000_000
"""Of the largest map of all pictures that are decoded together: four of VQ-16's with 384 pixels a side. Three
such maps are alive at a time."""

_MOST_PLACES = 1024
"""Of a grid, up to which all scores of attention are kept at once."""

NUMBERS_RECORDED = 20_000_000
"""Of the largest map of all pictures, up to which decoding is recorded: a recording keeps its maps."""


def suits(*modules: nn.Module) -> bool:
    """Whether their weights are where this is the better form, and no gradients are asked for."""
    weights = [weight for module in modules for weight in module.parameters()]
    first = weights[0]
    if first.dtype not in DTYPES or not dispatch.serves(first, *weights):
        return False
    return all(weight.device == first.device and weight.dtype == first.dtype for weight in weights)


def _strays(module: nn.Module) -> list[nn.Conv2d]:
    convs = (part for part in module.modules() if isinstance(part, nn.Conv2d))
    form = torch.channels_last
    return [c for c in convs if not (c.weight.requires_grad or c.weight.is_contiguous(memory_format=form))]


@torch.no_grad()
def channels_last(module: nn.Module) -> None:
    """Lay the weights of convolutions as their kernels read them, for good: values, names and shapes stay.
    Weights that are being trained are left where they are, and laid anew at every call."""
    if not _strays(module):
        return
    with graph_capture_lock:  # who comes meanwhile waits, and finds none
        for conv in _strays(module):
            with torch.inference_mode(conv.weight.is_inference()):
                conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)


@dataclass
class Map:
    """A feature map `y + bias + past`, of which the sums may still be to do."""

    y_BCHW: Tensor
    bias_C: Tensor | None = None
    past_BCHW: Tensor | None = None


class Fused:
    """The operations of one decoding."""

    def __init__(self) -> None:
        from . import triton_kernels  # needs Triton

        self.kernels = triton_kernels

    def begin(self, x_BCHW: Tensor) -> Map:
        return Map(_last(x_BCHW))

    def normed_conv(self, x: Map, norm: nn.GroupNorm, conv: nn.Conv2d) -> Map:
        """`conv(silu(norm(x)))`; the sums of `x` are done then."""
        found = self._settle(x)
        return _conv(self.kernels.normed(x.y_BCHW, found, norm), conv)

    def add_normed_conv(
        self, x: Map, y: Map, norm: nn.GroupNorm, conv: nn.Conv2d, shortcut: nn.Conv2d | None
    ) -> Map:
        """`conv(silu(norm(y))) + shortcut(x)`; y is written over."""
        assert y.past_BCHW is None
        found = self.kernels.statistics(y.y_BCHW)
        h = self.kernels.normed(y.y_BCHW, found, norm, y.bias_C, out=y.y_BCHW)
        out = _conv(h, conv)
        out.past_BCHW = x.y_BCHW if shortcut is None else _image(_pointwise(_rows(x), shortcut), x)
        return out

    def attend(self, x: Map, block: AttnBlock) -> Map:
        found = self._settle(x)
        h = self.kernels.normed(x.y_BCHW, found, block.norm, silu=False)
        h_BPC = _rows(Map(h))
        q, k, v = (_pointwise(h_BPC, project) for project in (block.q, block.k, block.v))
        out_BPC = _attend(q, k, v)
        y_BPC = F.linear(out_BPC, block.proj_out.weight.flatten(1))
        return Map(_image(y_BPC, x), block.proj_out.bias, x.y_BCHW)

    def upsampled_conv(self, x: Map, conv: nn.Conv2d) -> Map:
        return _conv(self.kernels.doubled(x.y_BCHW, x.bias_C, x.past_BCHW), conv)

    def finish(self, x: Map, norm: nn.GroupNorm, conv: nn.Conv2d) -> Tensor:
        """`conv(silu(norm(x)))`, contiguous."""
        found = self._settle(x)
        return conv(self.kernels.normed(x.y_BCHW, found, norm, out=x.y_BCHW)).contiguous()

    def _settle(self, x: Map) -> Statistics:
        """Do the sums of a map, over what they are of; the statistics of the map."""
        writes = x.bias_C is not None or x.past_BCHW is not None
        found = self.kernels.statistics(x.y_BCHW, x.bias_C, x.past_BCHW, writes=writes)
        x.bias_C = x.past_BCHW = None
        return found


def _attend(q_BPC: Tensor, k_BPC: Tensor, v_BPC: Tensor) -> Tensor:
    """Attention of one head over all places. At 576 places of 512 channels torch's own takes 54 us on an
    H100, products 15; they keep all scores at once."""
    if q_BPC.shape[1] > _MOST_PLACES:
        return F.scaled_dot_product_attention(q_BPC[:, None], k_BPC[:, None], v_BPC[:, None])[:, 0]
    scores_BPP = torch.bmm(q_BPC, k_BPC.transpose(1, 2)).float() * q_BPC.shape[2] ** -0.5
    return torch.bmm(scores_BPP.softmax(-1).to(v_BPC.dtype), v_BPC)


def _last(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def _conv(x_BCHW: Tensor, conv: nn.Conv2d) -> Map:
    """`conv`, whose bias is still to add: torch would do that in a pass of its own."""
    y_BCHW = F.conv2d(x_BCHW, conv.weight, None, conv.stride, conv.padding)  # type: ignore[arg-type]
    return Map(_last(y_BCHW), conv.bias)


def _rows(x: Map) -> Tensor:
    """`[B, P, C]`."""
    return x.y_BCHW.flatten(2).transpose(1, 2)


def _image(x_BPC: Tensor, like: Map) -> Tensor:
    """`[B, C, H, W]`."""
    return x_BPC.transpose(1, 2).unflatten(2, like.y_BCHW.shape[2:])


def _pointwise(x_BPC: Tensor, conv: nn.Conv2d) -> Tensor:
    """A convolution of 1 x 1, as the product that it is."""
    return F.linear(x_BPC, conv.weight.flatten(1), conv.bias)
