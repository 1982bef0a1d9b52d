"""Triton kernels for decode steps: residual addition with RMSNorm, and SwiGLU, one launch each.

R rows, D decoder width, I width of a feed-forward.

The definitions are `RMSNorm` and `FeedForward` in model/layers.py. Values are rounded in the same places; the
order of summation differs.
"""

# Triton kernels are not what their Python types say:
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
    part_stride,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offset = row * WIDTH
    k = tl.arange(0, PADDED)
    mask = k < WIDTH
    gain = tl.load(weight + k, mask=mask, other=0.0).to(tl.float32)
    wait_then_trigger(PDL)
    value = tl.load(x + row * x_stride + k, mask=mask, other=0.0).to(tl.float32)
    if PARTS > 0:
        added = tl.load(delta + offset + k, mask=mask, other=0.0).to(tl.float32)
        for part in tl.static_range(PARTS - 1):  # pyright: ignore[reportGeneralTypeIssues]
            added += tl.load(delta + (part + 1) * part_stride + offset + k, mask=mask, other=0.0)
        value += added.to(total.dtype.element_ty).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + offset + k, rounded, mask=mask)
        value = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / WIDTH + eps)
    normed = (value * scale).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + offset + k, (gain * normed).to(out.dtype.element_ty), mask=mask)


def add_norm(
    x_RD: Tensor, delta_RD: Tensor | None, weight: Tensor, eps: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`x + delta`, or `x` if `delta` is None, and its `RMSNorm`, which is written to `out` if given. A delta
    in parts `[parts, R, D]` (see `gemv.linear_in_parts`) is their sum, rounded to the dtype of `x`."""
    rows, width = x_RD.shape
    parts = 0 if delta_RD is None else delta_RD.numel() // x_RD.numel()
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
        rows * width,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        PARTS=parts,
        num_warps=16 if 1536 <= width < 2048 else 4 if width <= 2048 else 8,
        **pdl_options(out),
    )
    return total_RD, out


@triton.jit
def _swiglu(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    wait_then_trigger(PDL)
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = k < WIDTH
    gate = tl.load(gate_up + row * 2 * WIDTH + k, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + k, mask=mask, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * WIDTH + k, (silu * up).to(out.dtype.element_ty), mask=mask)


def swiglu(gate_up_RI: Tensor) -> Tensor:
    """`silu(gate) * up` of concatenated gates and ups, `[R, 2 I]` -> `[R, I]`."""
    rows, width = gate_up_RI.shape[0], gate_up_RI.shape[1] // 2
    out = gate_up_RI.new_empty(rows, width)
    grid = (rows, triton.cdiv(width, 512))
    _swiglu[grid](gate_up_RI.contiguous(), out, WIDTH=width, BLOCK=512, **pdl_options(out))
    return out
