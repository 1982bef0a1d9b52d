"""Products of few rows with large weights, which are bound by reading the weights once.

R rows, I inputs, O outputs, C columns of a tile, as they are stored: inputs, or bytes of two inputs each in
int4. A weight is `[O, I]`, as in `nn.Linear`, or codes with scales as in `quantized_weight`. The weights are
the large side of the tensor cores' tiles and the rows, filled up, the small one. A program loads its first
weights while it waits for the kernel before it.

Tried, and slower: norms and residual sums made in here, which saves two launches a layer. On an H100 a layer
of Janus-Pro-1B takes 54.8 us; 68 (of 59, then) when each program norms all its inputs, 58.8 when the first
product adds the residual and leaves sums of squares by which the second one's outputs are scaled.
"""

# What Triton's compiler reads is not what a checker of types takes it for:
# pyright: reportArgumentType=false, reportCallIssue=false

from functools import cache

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from ..model.quantized_linear import Weight, decode
from .gemv_tiles import MOST_ROWS, Tile, fit, plan_tile
from .gemv_triton import product_kernel
from .pdl import launching, lines
from .rmsnorm_swiglu import swiglu
from .row_products import exact_products

_LEAST_GROUP = 16  # inputs that share a scale: as many as the tensor cores add at once
_LEAST_SHARED = 99 << 10  # bytes of shared memory that a program has on every GPU from Ampere on
_AHEAD = 1 << 14
"""Bytes of weights that a program asks for while it waits for the kernel before it."""


def _columns(weight: Weight, tile: Tile) -> int:
    """Columns that a turn of the loop takes: in int4 those of its groups."""
    columns = weight.codes.shape[1]
    if weight.zero is not None:
        return columns // weight.zero.shape[1] * tile.groups
    return min(max(32, tile.bytes // weight.codes.itemsize), max(32, triton.next_power_of_2(columns)))


@cache
def _shared_memory(device: torch.device) -> int:
    """Bytes that a program can have."""
    if device.type != "cuda":  # in the interpreter
        return 1 << 30
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", _LEAST_SHARED)


def _launch(x_RI: Tensor, weight: Weight, gated: bool) -> Tensor:
    rows, codes = len(x_RI), weight.codes
    columns = codes.shape[1]
    outputs = len(codes) // (2 if gated else 1)
    groups = 1 if weight.zero is None else weight.zero.shape[1]
    tile = plan_tile(weight.kind, x_RI.shape[1], outputs, gated, rows, groups)
    width = _columns(weight, tile)
    inputs = width * x_RI.shape[1] // columns
    tall = tile.outputs * (2 if gated else 1)
    turn = width * codes.itemsize * tall
    turn += inputs * x_RI.itemsize * tile.rows * tile.groups
    tile = fit(tile, turn, _shared_memory(x_RI.device))
    out = x_RI.new_empty(rows, outputs)
    product_kernel[(triton.cdiv(outputs, tile.outputs), triton.cdiv(rows, tile.rows))](
        x_RI.contiguous(),
        codes,
        codes if weight.scale is None else weight.scale,
        codes if weight.zero is None else weight.zero,
        out,
        rows,
        O=outputs,
        COLUMNS=columns,
        KIND=weight.kind,
        EXACT=exact_products(out.dtype),
        FLIP=tile.flip,
        BLOCK_R=tile.rows,
        BLOCK_O=tile.outputs,
        BLOCK_C=width,
        GROUPS=tile.groups,
        GATED=gated,
        **lines(codes, _AHEAD // tall),
        num_warps=tile.warps,
        num_stages=tile.stages if out.dtype != torch.float32 else min(tile.stages, 2),
        **launching(out),
    )
    return out


def serves(x_RI: Tensor, weight: Weight) -> bool:
    """Whether the kernel takes these rows: few, in half precision, of whole sixteens of inputs; or codes,
    whose groups are not too small."""
    if weight.zero is not None:
        return x_RI.shape[1] // weight.zero.shape[1] >= _LEAST_GROUP
    if weight.kind != "plain":
        return True
    return len(x_RI) <= MOST_ROWS and x_RI.dtype != torch.float32 and x_RI.shape[1] % 16 == 0


def product(x_RI: Tensor, weight: Weight) -> Tensor:
    """`F.linear`, `[R, O]`."""
    if serves(x_RI, weight):
        return _launch(x_RI, weight, False)
    if weight.scale is None:
        return F.linear(x_RI, weight.codes)
    return F.linear(x_RI, decode(weight.codes, weight.scale, weight.zero, x_RI.dtype))


def gated_product(x_RI: Tensor, weight: Weight) -> Tensor:
    """`silu(gate) * up` of a weight that holds the gates' rows and then the ups', `[R, O / 2]`."""
    return _launch(x_RI, weight, True) if serves(x_RI, weight) else swiglu(product(x_RI, weight))
