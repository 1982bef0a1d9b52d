"""Weights prepacked into oneDNN's blocked layout, for linear layers of few rows in bfloat16 on CPUs.

O outputs, I inputs. A prepacked weight is a tensor with the plain weight's shape `[O, I]`, dtype and size in
memory, which only `linear` and `unpack` can read.

oneDNN reorders a plain weight in every product, and two cores then don't reach memory bandwidth. Measured on
2 cores of an EPYC with avx512_bf16 and 33 GB/s, torch 2.14, weights not in the cache, 2 rows: a 5632 x 2048
product takes 1.15 ms (20 GB/s), prepacked 0.98, prepacked and padded to 4 rows 0.79 (29 GB/s); 2048 x 5632
takes 1.06, 0.96, 0.81; 2048 x 2048 takes 0.40, 0.37, 0.29. From 1 to 576 rows, prepacked weights are at
least as fast.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ROWS = 16
"""Most rows for which prepacking gains much."""
_PADDED_ROWS = 4  # as fast as one row, and faster than two
_MIN_NUMEL = 1 << 20  # smaller weights stay in the processor's caches
_BLOCK = 64  # of oneDNN's layout; other sizes would be padded and take more memory


@cache
def is_supported() -> bool:
    """Whether this torch can prepack weights and this processor can multiply bfloat16."""
    ops, has_bf16 = torch.ops.mkldnn, getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    has_ops = hasattr(ops, "_linear_pointwise") and hasattr(ops, "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and has_ops and has_bf16 is not None and has_bf16()


def benefits(x: Tensor, weight: Tensor) -> bool:
    """Whether a plain weight is worth prepacking for rows like `x`."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.bfloat16
        and x.numel() <= MAX_ROWS * x.shape[-1]
        and weight.numel() >= _MIN_NUMEL
        and weight.shape[0] % _BLOCK == weight.shape[1] % _BLOCK == 0
        and not (x.requires_grad or weight.requires_grad or torch.compiler.is_compiling())
        and is_supported()
    )


@torch.no_grad()
def prepack(weight: Tensor) -> Tensor:
    """A plain weight in oneDNN's layout."""
    with torch.inference_mode(False):
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PADDED_ROWS)


@torch.no_grad()
def unpack(weight: Tensor) -> Tensor:
    """A prepacked weight in the plain layout."""
    with torch.inference_mode(False):
        return weight.detach().to_dense()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` with a prepacked weight."""
    autocast = torch.is_autocast_enabled("cpu")
    if x.dtype != weight.dtype or x.requires_grad or weight.requires_grad or autocast or not x.numel():
        return F.linear(x, weight.to_dense(), bias)
    rows = x.reshape(-1, x.shape[-1])
    count = len(rows)
    if count < _PADDED_ROWS:
        rows = torch.cat((rows,) * -(-_PADDED_ROWS // count))[:_PADDED_ROWS]
    out = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return out[:count].view(*x.shape[:-1], -1)
