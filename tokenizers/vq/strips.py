"""The image tokenizer's decoder in strips: what its modules compute, in another order, for CPUs.

A strip is a few whole rows of a feature map, few enough to stay in the caches from the norm to the
convolution and the residual sum; only what a block ends in is written to memory, over its input where it
can be. Norms get their statistics as rows are written.

One picture at a time: C channels, H and W height and width, K and O channels in and out, G groups of a norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .winograd import ROWS, conv_rows, row_kernels

NUMBERS_A_THREAD = 2**19
"""Of a strip, for each thread: a megabyte in bfloat16. From half to four times as many took the same time."""

WINOGRAD_PLACES, WINOGRAD_CHANNELS = 96 * 96, 64
"""Of a feature map, from which halved products save more than the sums of the weights and of rows take. (At
32 channels, janus-nano's, they cost a third more than they save.)"""


def suits(x: Tensor, module: nn.Module) -> bool:
    """Whether strips are the better form: without gradients, in the dtypes they were measured in."""
    weights = list(module.parameters())
    if (
        x.device.type != "cpu"
        or x.dtype not in (torch.bfloat16, torch.float32)
        or torch.is_autocast_enabled("cpu")
    ):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights)):
        return False
    return all(weight.device == x.device and weight.dtype == x.dtype for weight in weights)


@dataclass
class Map:
    """A feature map `[1, C, H, W]`, channels last in memory, and what is known of each channel."""

    x_1CHW: Tensor
    parts: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    """Of the strips so far: how many places, mean and variance `[C]`, float32."""

    def wrote(self, top: int, bottom: int) -> None:
        strip = self.x_1CHW[:, :, top:bottom]
        mean_C, var_C = torch.batch_norm_update_stats(strip, None, None, 0.0)
        self.parts.append((strip[0, 0].numel(), mean_C, var_C))

    def group_statistics(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """Mean and variance of the channel's group for each channel, `[C]` each."""
        share_S1 = torch.tensor([[float(count)] for count, _, _ in self.parts])
        share_S1 /= share_S1.sum()
        mean_SC = torch.stack([mean_C for _, mean_C, _ in self.parts])
        var_SC = torch.stack([var_C for _, _, var_C in self.parts])
        mean_SGc, var_SGc = (t.unflatten(1, (norm.num_groups, -1)) for t in (mean_SC, var_SC))
        share_S11 = share_S1[..., None] / mean_SGc.shape[2]
        mean_G1 = (share_S11 * mean_SGc).sum((0, 2))[:, None]
        var_G1 = (share_S11 * (var_SGc + (mean_SGc - mean_G1).square())).sum((0, 2))[:, None]
        return mean_G1.expand(mean_SGc.shape[1:]).reshape(-1), var_G1.expand(mean_SGc.shape[1:]).reshape(-1)


class Strips:
    """The operations of one decoding, and the memory that one leaves to the next."""

    def __init__(self) -> None:
        self.spare: Tensor | None = None

    def empty(self, like: Tensor, channels: int, height: int, width: int) -> Tensor:
        spare, self.spare = self.spare, None
        if spare is not None and spare.shape == (1, channels, height, width):
            return spare
        return like.new_empty(1, height, width, channels).permute(0, 3, 1, 2)

    def begin(self, x_1CHW: Tensor) -> Map:
        x = Map(x_1CHW.contiguous(memory_format=torch.channels_last))
        for top, bottom in _strips(x.x_1CHW):
            x.wrote(top, bottom)
        return x

    def normed_conv(self, x: Map, norm: nn.GroupNorm, conv: nn.Conv2d) -> Map:
        """`conv(silu(norm(x)))`."""
        h, w = x.x_1CHW.shape[2:]
        y = Map(self.empty(x.x_1CHW, conv.out_channels, h, w))
        for top, bottom, found in _normed_convs(x, norm, conv):
            y.x_1CHW[:, :, top:bottom] = found
            y.wrote(top, bottom)
        return y

    def add_normed_conv(
        self, x: Map, y: Map, norm: nn.GroupNorm, conv: nn.Conv2d, shortcut: nn.Module | None
    ) -> Map:
        """`conv(silu(norm(y))) + shortcut(x)`, written over x without a shortcut, over y with one."""
        out = Map(self.empty(x.x_1CHW, conv.out_channels, *x.x_1CHW.shape[2:]) if shortcut else x.x_1CHW)
        for top, bottom, found in _normed_convs(y, norm, conv):
            past = x.x_1CHW[:, :, top:bottom]
            torch.add(found, shortcut(past) if shortcut else past, out=out.x_1CHW[:, :, top:bottom])
            out.wrote(top, bottom)
        self.spare = y.x_1CHW
        return out

    def attend(self, x: Map, block: nn.Module) -> Map:
        return self.begin(block(x.x_1CHW))

    def upsampled_conv(self, x: Map, conv: nn.Conv2d) -> Map:
        """`conv` of x with every place doubled in both directions. Of the 3 x 3 places under the kernel only
        2 x 2 differ, so each of the four places that come of one has a kernel of 2 x 2 sums of weights."""
        h, w = x.x_1CHW.shape[2:]
        y = Map(self.empty(x.x_1CHW, conv.out_channels, 2 * h, 2 * w))
        y_HWO = y.x_1CHW[0].permute(1, 2, 0).view(h, 2, w, 2, -1)
        kernels = phase_kernels(conv.weight)
        bias = None if conv.bias is None else conv.bias.repeat(2)
        for top, bottom in _strips(x.x_1CHW, 2):
            for a in (0, 1):
                rows = _rows(x.x_1CHW, top - 1 + a, bottom + a)
                found = F.conv2d(rows, kernels[a], bias, padding=(0, 1))
                found_HWbO = found[0].permute(1, 2, 0).unflatten(2, (2, -1))
                for b in (0, 1):
                    y_HWO[top:bottom, a, :, b] = found_HWbO[:, b : w + b, b]
            y.wrote(2 * top, 2 * bottom)
        return y

    def finish(self, x: Map, norm: nn.GroupNorm, conv: nn.Conv2d) -> Tensor:
        """`conv(silu(norm(x)))` `[1, O, H, W]`, contiguous."""
        h, w = x.x_1CHW.shape[2:]
        out = x.x_1CHW.new_empty(1, conv.out_channels, h, w)
        for top, bottom, found in _normed_convs(x, norm, conv):
            out[:, :, top:bottom] = found
        return out


def phase_kernels(weight_OK33: Tensor) -> list[Tensor]:
    """Kernels `[2 O, K, 2, 2]` of the even rows and of the odd: those of even columns, then of odd ones."""

    def pairs(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        first, second, third = weight.unbind(dim)
        return torch.stack((first, second + third), dim), torch.stack((first + second, third), dim)

    return [
        torch.cat(pairs(rows, 3)).to(weight_OK33.dtype, memory_format=torch.channels_last)
        for rows in pairs(weight_OK33.float(), 2)
    ]


def _strips(x_1CHW: Tensor, scale: int = 1) -> Iterator[tuple[int, int]]:
    """First row and the one after the last of each strip; `scale` the side of what comes of one place."""
    h, w = x_1CHW.shape[2:]
    numbers = NUMBERS_A_THREAD * torch.get_num_threads()
    count = max(1, round(h * w * scale**2 * x_1CHW.shape[1] / numbers))
    rows = -(-h // count)
    rows += -rows % ROWS
    for top in range(0, h, rows):
        yield top, min(top + rows, h)


def _rows(x_1CHW: Tensor, top: int, bottom: int) -> Tensor:
    """Rows `top` to `bottom`, those beyond an edge zero."""
    height = x_1CHW.shape[2]
    rows = x_1CHW[:, :, max(top, 0) : bottom]
    beyond = (max(-top, 0), max(bottom - height, 0))
    return F.pad(rows, (0, 0, *beyond)) if any(beyond) else rows


def _normed_convs(x: Map, norm: nn.GroupNorm, conv: nn.Conv2d) -> Iterator[tuple[int, int, Tensor]]:
    """Strips of `conv(silu(norm(x)))`, kernels of 3 x 3: first row, the one after the last, the numbers."""
    mean_C, var_C = x.group_statistics(norm)
    gain, shift = (None if p is None else p.float() for p in (norm.weight, norm.bias))
    height, convolve = x.x_1CHW.shape[2], _convolution(conv, x.x_1CHW)
    for top, bottom in _strips(x.x_1CHW):
        rows = x.x_1CHW[:, :, max(top - 1, 0) : bottom + 1]
        rows = F.silu(F.batch_norm(rows, mean_C, var_C, gain, shift, eps=norm.eps), inplace=True)
        if top == 0 or bottom == height:
            rows = F.pad(rows, (0, 0, int(top == 0), int(bottom == height)))
        yield top, bottom, convolve(rows)


def _convolution(conv: nn.Conv2d, x_1CHW: Tensor) -> Callable[[Tensor], Tensor]:
    """`conv` of rows that bring what lies above and below them."""
    weight, bias = conv.weight, conv.bias
    if by_winograd(conv, x_1CHW):
        kernels = row_kernels(weight)
        return lambda rows: conv_rows(rows, kernels, bias)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return lambda rows: F.conv2d(rows, weight, bias, padding=(0, 1))


def by_winograd(conv: nn.Conv2d, x_1CHW: Tensor) -> bool:
    """Whether fewer products pay for the sums: of the weights at every call, of rows in and out."""
    height, width = x_1CHW.shape[2:]
    large = height * width >= WINOGRAD_PLACES and conv.in_channels >= WINOGRAD_CHANNELS
    return x_1CHW.dtype == torch.float32 and height % ROWS == 0 and large
