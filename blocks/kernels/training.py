"""Triton kernels for training, each with its gradient: RMSNorm and SwiGLU.

The definitions are `RMSNorm` and `FeedForward` in model/layers.py. Results are rounded in the same
places; gradients are computed in float32 and rounded once.

R rows, D width, I width of a feed-forward.
"""

# Triton kernels are not what their Python types say:
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

_PROGRAMS = 528  # of the norm's gradient, each with a partial sum of the weight's: four for each of 132 SMs
_BLOCK = 2048


@triton.jit
def _norm(x, weight, out, scales, eps, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, PADDED)
    mask = k < WIDTH
    value = tl.load(x + row * WIDTH + k, mask=mask, other=0.0).to(tl.float32)
    gain = tl.load(weight + k, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / WIDTH + eps)
    tl.store(scales + row, scale)
    normed = (value * scale).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * WIDTH + k, (gain * normed).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _norm_gradient(
    grad,
    x,
    weight,
    scales,
    x_grad,
    weight_grads,
    rows,
    turns,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    LEARNS: tl.constexpr,
):
    """With y = w n, n = s x: dx = s (w dy - n mean(w dy n)), and dw sums dy n over the rows of a program."""
    first, k = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    gain = tl.load(weight + k, mask=k < WIDTH, other=0.0).to(tl.float32)
    total = tl.zeros((PADDED,), dtype=tl.float32)
    for turn in range(turns):
        row = first + turn * tl.num_programs(0)
        mask = (k < WIDTH) & (row < rows)
        scale = tl.load(scales + row, mask=row < rows, other=0.0)
        normed = tl.load(x + row * WIDTH + k, mask=mask, other=0.0).to(tl.float32) * scale
        slope = tl.load(grad + row * WIDTH + k, mask=mask, other=0.0).to(tl.float32)
        if LEARNS:
            total += slope * normed
        slope = slope * gain
        mean = tl.sum(slope * normed, axis=0) / WIDTH
        tl.store(
            x_grad + row * WIDTH + k, (scale * (slope - normed * mean)).to(x_grad.dtype.element_ty), mask=mask
        )
    if LEARNS:
        tl.store(weight_grads + first * WIDTH + k, total, mask=k < WIDTH)


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        width = x.shape[-1]
        x_RD, weight = x.reshape(-1, width).contiguous(), weight.contiguous()
        out, scales = torch.empty_like(x_RD), x_RD.new_empty(len(x_RD), dtype=torch.float32)
        sizes = {"WIDTH": width, "PADDED": triton.next_power_of_2(width), "num_warps": _warps(width)}
        with torch.cuda.device_of(x):
            _norm[(len(x_RD),)](x_RD, weight, out, scales, eps, **sizes)
        ctx.save_for_backward(x_RD, weight, scales)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x_RD, weight, scales = ctx.saved_tensors
        rows, width = x_RD.shape
        learns, programs = ctx.needs_input_grad[1], min(rows, _PROGRAMS)
        x_grad = torch.empty_like(x_RD)
        sums = x_RD.new_empty(programs if learns else 0, width, dtype=torch.float32)
        with torch.cuda.device_of(x_RD):
            _norm_gradient[(programs,)](
                grads[0].reshape(rows, width).contiguous(),
                x_RD,
                weight,
                scales,
                x_grad,
                sums,
                rows,
                triton.cdiv(rows, programs),
                WIDTH=width,
                PADDED=triton.next_power_of_2(width),
                LEARNS=learns,
                num_warps=_warps(width),
            )
        return x_grad.view(grads[0].shape), sums.sum(0).to(weight.dtype) if learns else None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`RMSNorm` of the last dimension."""
    return _RMSNorm.apply(x, weight, eps)  # type: ignore[return-value]


@triton.jit
def _swiglu(gate, up, out, count, BLOCK: tl.constexpr):
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = k < count
    x = tl.load(gate + k, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(up + k, mask=mask, other=0.0).to(tl.float32)
    silu = (x / (1.0 + tl.exp(-x))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + k, (silu * y).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _swiglu_gradient(grad, gate, up, gate_grad, up_grad, count, BLOCK: tl.constexpr):
    """Of silu(x) y, with s = sigmoid(x): dx = dout y s (1 + x (1 - s)) and dy = dout x s."""
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = k < count
    slope = tl.load(grad + k, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(gate + k, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(up + k, mask=mask, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-x))
    dtype = gate_grad.dtype.element_ty
    tl.store(gate_grad + k, (slope * y * sigmoid * (1.0 + x * (1.0 - sigmoid))).to(dtype), mask=mask)
    tl.store(up_grad + k, (slope * x * sigmoid).to(dtype), mask=mask)


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        with torch.cuda.device_of(gate):
            _swiglu[(triton.cdiv(out.numel(), _BLOCK),)](gate, up, out, out.numel(), BLOCK=_BLOCK)
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        gate_grad, up_grad = torch.empty_like(gate), torch.empty_like(up)
        count, grad = gate.numel(), grads[0].contiguous()
        with torch.cuda.device_of(gate):
            _swiglu_gradient[(triton.cdiv(count, _BLOCK),)](
                grad, gate, up, gate_grad, up_grad, count, BLOCK=_BLOCK
            )
        return gate_grad, up_grad


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`."""
    return _SwiGLU.apply(gate, up)  # type: ignore[return-value]


def _warps(width: int) -> int:
    return 4 if width <= 2048 else 8
