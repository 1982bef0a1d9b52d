"""Products of few rows with large weights, which are bound by reading the weights once.

R rows, I inputs, O outputs. A weight is `[O, I]`, as in `nn.Linear`. The weights are the large side of the
tensor cores' tiles and the rows, filled up, the small one.
"""

# What Triton's compiler reads is not what a checker of types takes it for.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .kernels import launching, swiglu

MOST_ROWS = 16
"""Up to so many rows these kernels serve, above the library's products do."""
_PROGRAMS = 128  # tiles are made as large as leaves so many: one for each processor of a large GPU
_INPUTS = 256
_LINE = 128  # bytes that the cache of the device reads at once
_AHEAD = 1 << 16
"""Bytes of weights that a program asks into that cache while it waits for the kernel before it."""


@triton.jit
def _tile(weight, n, k, I: tl.constexpr, WHOLE: tl.constexpr):  # noqa: E741
    if WHOLE:
        return tl.load(weight + n[:, None] * I + k[None, :])
    return tl.load(weight + n[:, None] * I + k[None, :], mask=(k < I)[None, :], other=0.0)


@triton.jit
def _ask_ahead(weight, n, I: tl.constexpr, LINES: tl.constexpr, STEP: tl.constexpr):  # noqa: E741
    """Asks for the first lines of some outputs' weights."""
    places = weight + n[:, None] * I + tl.minimum(tl.arange(0, LINES) * STEP, I - 1)[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [places.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _product(
    x,
    weight,
    out,
    R: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    O: tl.constexpr,  # noqa: E741
    R_PADDED: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    GATED: tl.constexpr,
    LINES: tl.constexpr,
    STEP: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Some outputs of all rows. GATED: the weight is gates over ups, and out is `silu(gate) * up`."""
    n = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    known = tl.minimum(n, O - 1).to(tl.int64)  # a last tile that sticks out computes a row twice
    if EARLY:
        _ask_ahead(weight, known, I, LINES, STEP)
        if GATED:
            _ask_ahead(weight, known + O, I, LINES, STEP)
        gdc_wait()
        gdc_launch_dependents()
    r = tl.arange(0, R_PADDED)
    kind = out.dtype.element_ty
    acc = tl.zeros([BLOCK_O, R_PADDED], tl.float32)
    ups = tl.zeros([BLOCK_O, R_PADDED], tl.float32)
    for first in range(0, I, BLOCK_I):
        k = first + tl.arange(0, BLOCK_I)
        rows = tl.load(x + r[None, :] * I + k[:, None], mask=(r < R)[None, :] & (k < I)[:, None], other=0.0)
        acc = tl.dot(_tile(weight, known, k, I, I % BLOCK_I == 0), rows, acc)
        if GATED:
            ups = tl.dot(_tile(weight, known + O, k, I, I % BLOCK_I == 0), rows, ups)
    if GATED:
        gate = acc.to(kind).to(tl.float32)
        opened = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)
        acc = opened * ups.to(kind).to(tl.float32)
    tl.store(out + r[None, :] * O + n[:, None], acc.to(kind), mask=(r < R)[None, :] & (n < O)[:, None])


def serves(x_RI: Tensor) -> bool:
    """Whether the kernels take these rows: few, in half precision, of whole sixteens of inputs."""
    return len(x_RI) <= MOST_ROWS and x_RI.dtype != torch.float32 and x_RI.shape[1] % 16 == 0


def _launch(x_RI: Tensor, weight_OI: Tensor, outputs: int, gated: bool) -> Tensor:
    rows, inputs = x_RI.shape
    out = x_RI.new_empty(rows, outputs)
    weights = 2 if gated else 1
    block = next((b for b in (64, 32) if weights * outputs >= _PROGRAMS * b * weights), 16)
    _product[(triton.cdiv(outputs, block),)](
        x_RI.contiguous(),
        weight_OI,
        out,
        R=rows,
        I=inputs,
        O=outputs,
        R_PADDED=16,
        BLOCK_O=block,
        BLOCK_I=_INPUTS if block < 64 else _INPUTS // 2,
        GATED=gated,
        LINES=_AHEAD // (weights * block * _LINE),
        STEP=_LINE // weight_OI.itemsize,
        num_warps=4,
        num_stages=4,
        **launching(out),
    )
    return out


def product(x_RI: Tensor, weight_OI: Tensor) -> Tensor:
    """`F.linear`, `[R, O]`."""
    return _launch(x_RI, weight_OI, len(weight_OI), False) if serves(x_RI) else F.linear(x_RI, weight_OI)


def gated_product(x_RI: Tensor, weight_OI: Tensor) -> Tensor:
    """`silu(gate) * up` of a weight that holds the gates' rows and then the ups', `[R, O / 2]`."""
    if serves(x_RI):
        return _launch(x_RI, weight_OI, len(weight_OI) // 2, True)
    return swiglu(F.linear(x_RI, weight_OI))
