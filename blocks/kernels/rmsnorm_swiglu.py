"""Triton kernels of one decoding step: sum and norm, and SwiGLU, each one launch (see overlap.py).

R rows, D decoder width, I width of a feed-forward.

The plain functions stay the definition: norm.py, feed_forward.py. Roundings come in their order; sums are in
another one.
"""

# What Triton's compiler reads is not what a checker of types takes it for.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false

import triton
import triton.language as tl
from torch import Tensor

from .pdl import pdl_options, wait_then_trigger


@triton.jit
def _add_norm(
    x,
    delta,
    weight,
    total,
    out,
    eps,
    x_stride,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ADDS: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = row * WIDTH
    k = tl.arange(0, PADDED)
    inside = k < WIDTH
    gain = tl.load(weight + k, mask=inside, other=0.0).to(tl.float32)
    wait_then_trigger(PDL)
    wide = tl.load(x + row * x_stride + k, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        wide += tl.load(delta + at + k, mask=inside, other=0.0).to(tl.float32)
        rounded = wide.to(total.dtype.element_ty)
        tl.store(total + at + k, rounded, mask=inside)
        wide = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / WIDTH + eps)
    normed = (wide * scale).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + at + k, (gain * normed).to(out.dtype.element_ty), mask=inside)


def add_norm(
    x_RD: Tensor, delta_RD: Tensor | None, weight: Tensor, eps: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`x + delta` (None: `x` itself) and its `RMSNorm`, which goes into `out` if that is given."""
    rows, width = x_RD.shape
    x_RD = x_RD if x_RD.stride(1) == 1 else x_RD.contiguous()
    total_RD = x_RD if delta_RD is None else x_RD.new_empty(rows, width)
    out = x_RD.new_empty(rows, width) if out is None else out
    _add_norm[(rows,)](
        x_RD,
        x_RD if delta_RD is None else delta_RD.contiguous(),
        weight,
        total_RD,
        out,
        eps,
        x_RD.stride(0),
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        ADDS=delta_RD is not None,
        num_warps=4 if width <= 2048 else 8,
        **pdl_options(out),
    )
    return total_RD, out


@triton.jit
def _swiglu(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    wait_then_trigger(PDL)
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = k < WIDTH
    gate = tl.load(gate_up + row * 2 * WIDTH + k, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + k, mask=inside, other=0.0).to(tl.float32)
    opened = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * WIDTH + k, (opened * up).to(out.dtype.element_ty), mask=inside)


def swiglu(gate_up_RI: Tensor) -> Tensor:
    """`silu(gate) * up` of both side by side, `[R, 2 I]` -> `[R, I]`."""
    rows, width = gate_up_RI.shape[0], gate_up_RI.shape[1] // 2
    out = gate_up_RI.new_empty(rows, width)
    grid = (rows, triton.cdiv(width, 512))
    _swiglu[grid](gate_up_RI.contiguous(), out, WIDTH=width, BLOCK=512, **pdl_options(out))
    return out
