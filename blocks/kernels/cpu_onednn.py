"""Weights in oneDNN's own order, for products of few rows in bfloat16 on CPUs that multiply it.

M rows, O outputs, I inputs. A packed weight is a tensor of `[O, I]` and of its dtype that only `product` and
`unpacked` read; it takes the memory that the plain one took.

In the plain order oneDNN puts a weight into its own at every product, which keeps two cores below the speed
of memory. Measured on 2 cores of an EPYC with avx512_bf16, memory of 33 GB/s, torch 2.14, weights that
no cache holds: 5632 x 2048 takes 2 rows 1.15 ms (20 GB/s), packed 0.98, packed and filled up to 4 rows 0.79
(29 GB/s); 2048 x 5632 1.06, 0.96, 0.81; 2048 x 2048 0.40, 0.37, 0.29. From 1 to 576 rows packed takes less,
or the same. Not faster than plain, each measured there: one row at a time, filling up plain rows, the weight
as the left factor, a weight stored `[I, O]`, products by blocks of outputs, huge pages.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 16
"""Rows up to which packing gains much."""
_ROWS = 4  # its kernels take so many as fast as one, and faster than two
_LEAST = 1 << 20  # numbers of a weight that is worth it: smaller ones stay in the processor's caches
_BLOCK = 64  # of oneDNN's order: other sizes would be filled up, and take more memory


@cache
def _can() -> bool:
    """Whether this torch packs, and this processor multiplies bfloat16."""
    ops, has = torch.ops.mkldnn, getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    known = hasattr(ops, "_linear_pointwise") and hasattr(ops, "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and known and has is not None and has()


def packs(x: Tensor, weight: Tensor) -> bool:
    """Whether packing a weight would serve products with rows like `x`."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.bfloat16
        and x.numel() <= FEW * x.shape[-1]
        and weight.numel() >= _LEAST
        and weight.shape[0] % _BLOCK == weight.shape[1] % _BLOCK == 0
        and not (x.requires_grad or weight.requires_grad or torch.compiler.is_compiling())
        and _can()
    )


@torch.no_grad()
def packed(weight: Tensor) -> Tensor:
    """A plain weight in oneDNN's order."""
    with torch.inference_mode(False):
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)


@torch.no_grad()
def unpacked(weight: Tensor) -> Tensor:
    """A packed weight in the plain order."""
    with torch.inference_mode(False):
        return weight.detach().to_dense()


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` by a packed weight."""
    autocast = torch.is_autocast_enabled("cpu")
    if x.dtype != weight.dtype or x.requires_grad or weight.requires_grad or autocast or not x.numel():
        return F.linear(x, weight.to_dense(), bias)
    rows = x.reshape(-1, x.shape[-1])
    count = len(rows)
    if count < _ROWS:
        rows = torch.cat((rows,) * -(-_ROWS // count))[:_ROWS]
    out = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return out[:count].view(*x.shape[:-1], -1)
