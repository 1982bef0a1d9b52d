"""A Triton kernel for prefill and training: rotary embedding, with its gradient. The definition is `rotate`
in model/layers.py; both are bitwise equal, since they round in the same places.

B rows, T positions, H heads, K dimensions of a head.
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


@triton.jit
def _rotate(
    x,
    cos,
    sin,
    out,
    x_b,
    x_h,
    x_t,
    x_k,
    out_b,
    out_h,
    out_t,
    H: tl.constexpr,
    HALF: tl.constexpr,
    PAIRS: tl.constexpr,
    PADDED_H: tl.constexpr,
    PADDED: tl.constexpr,
):
    """All heads of one position. PAIRS: pairs are interleaved in `x`, else half-split."""
    t, b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    heads, k = tl.arange(0, PADDED_H)[:, None], tl.arange(0, PADDED)[None, :]
    mask = (heads < H) & (k < HALF)
    table = (b * tl.num_programs(0) + t) * 2 * HALF + k
    low_cos = tl.load(cos + table, mask=k < HALF, other=0.0)
    low_sin = tl.load(sin + table, mask=k < HALF, other=0.0)
    high_cos = tl.load(cos + table + HALF, mask=k < HALF, other=0.0)
    high_sin = tl.load(sin + table + HALF, mask=k < HALF, other=0.0)
    x_heads = x + b * x_b + t * x_t + heads * x_h
    if PAIRS:
        low_offset, high_offset = 2 * k * x_k, (2 * k + 1) * x_k
    else:
        low_offset, high_offset = k * x_k, (k + HALF) * x_k
    low = tl.load(x_heads + low_offset, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(x_heads + high_offset, mask=mask, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    out_heads = out + b * out_b + t * out_t + heads * out_h + k
    tl.store(out_heads, (low * low_cos + (-high) * low_sin).to(dtype), mask=mask)
    tl.store(out_heads + HALF, (high * high_cos + low * high_sin).to(dtype), mask=mask)


class _Rotation(Function):
    @staticmethod
    def forward(ctx: Any, x_BHTK: Tensor, cos: Tensor, sin: Tensor, pairs: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.pairs = pairs
        return _rotated(x_BHTK, (cos, sin), pairs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        x_grad = _rotated(grads[0], (cos, -sin), False)  # the inverse rotation is the transpose
        if ctx.pairs:
            x_grad = torch.stack(x_grad.chunk(2, dim=-1), dim=-1).flatten(-2)
        return x_grad, None, None, None


def rotate(x_BHTK: Tensor, table: tuple[Tensor, Tensor], pairs: bool = False) -> Tensor:
    """`layers.rotate`, or with `pairs` `layers.rotate_pairs`; the result has the memory layout of `x`."""
    if torch.is_grad_enabled() and x_BHTK.requires_grad:
        return _Rotation.apply(x_BHTK, *table, pairs)  # type: ignore[return-value]
    return _rotated(x_BHTK, table, pairs)


def _rotated(x_BHTK: Tensor, table: tuple[Tensor, Tensor], pairs: bool) -> Tensor:
    rows, heads, length, dim = x_BHTK.shape
    cos_BTK, sin_BTK = (part.expand(rows, length, dim).contiguous() for part in table)
    out_BHTK = torch.empty_like(x_BHTK)
    if out_BHTK.stride(3) != 1:  # the kernel writes contiguous heads, as later kernels read them
        out_BHTK = torch.empty_like(x_BHTK, memory_format=torch.contiguous_format)
    padded_heads, padded = triton.next_power_of_2(heads), triton.next_power_of_2(dim // 2)
    with torch.cuda.device_of(x_BHTK):
        _rotate[(length, rows)](
            x_BHTK,
            cos_BTK,
            sin_BTK,
            out_BHTK,
            *x_BHTK.stride(),
            *out_BHTK.stride()[:3],
            H=heads,
            HALF=dim // 2,
            PAIRS=pairs,
            PADDED_H=padded_heads,
            PADDED=padded,
            num_warps=4 if padded_heads * padded <= 2048 else 8,
            enable_fp_fusion=False,  # products are rounded before they are added, as in torch
        )
    return out_BHTK
