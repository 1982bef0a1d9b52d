"""Triton kernels of what a prompt's layers do beside their products: rotation, and the experts' weighted sum.

The plain functions stay the definition: rope.py, moe.py. A rotation has their bits, as it rounds like them.

B rows, T positions, H heads, K dimensions of a head, N tokens, D model width, P = N * K pairs of a token and
one of its K experts.
"""

# What Triton's compiler reads is not what a checker of types takes it for.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 512  # of a token that one block sums


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
    """All heads of one position. With PAIRS the two numbers that turn together lie side by side in `x`."""
    t, b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    heads, k = tl.arange(0, PADDED_H)[:, None], tl.arange(0, PADDED)[None, :]
    inside = (heads < H) & (k < HALF)
    table = (b * tl.num_programs(0) + t) * 2 * HALF + k
    low_cos = tl.load(cos + table, mask=k < HALF, other=0.0)
    low_sin = tl.load(sin + table, mask=k < HALF, other=0.0)
    high_cos = tl.load(cos + table + HALF, mask=k < HALF, other=0.0)
    high_sin = tl.load(sin + table + HALF, mask=k < HALF, other=0.0)
    first = x + b * x_b + t * x_t + heads * x_h
    if PAIRS:
        low_at, high_at = 2 * k * x_k, (2 * k + 1) * x_k
    else:
        low_at, high_at = k * x_k, (k + HALF) * x_k
    low = tl.load(first + low_at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(first + high_at, mask=inside, other=0.0).to(tl.float32)
    kind = out.dtype.element_ty
    turned = out + b * out_b + t * out_t + heads * out_h + k
    tl.store(turned, (low * low_cos + (-high) * low_sin).to(kind), mask=inside)
    tl.store(turned + HALF, (high * high_cos + low * high_sin).to(kind), mask=inside)


def rotate(x_BHTK: Tensor, table: tuple[Tensor, Tensor], pairs: bool = False) -> Tensor:
    """`rope.rotate`, or with `pairs` `rope.rotate_pairs`, in the layout of `x`."""
    rows, heads, length, dim = x_BHTK.shape
    cos_BTK, sin_BTK = (part.expand(rows, length, dim).contiguous() for part in table)
    out_BHTK = torch.empty_like(x_BHTK)
    if out_BHTK.stride(3) != 1:  # the kernel writes heads as they are read by all that follows
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
            enable_fp_fusion=False,  # products are rounded before they are added
        )
    return out_BHTK


@triton.jit
def _weighted_sum(outputs, places, weights, out, D: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], dtype=tl.float32)
    for k in tl.static_range(K):
        place = tl.load(places + token * K + k)
        output = tl.load(outputs + place * D + columns, mask=columns < D, other=0.0).to(tl.float32)
        total += output * tl.load(weights + token * K + k)
    tl.store(out + token * D + columns, total.to(out.dtype.element_ty), mask=columns < D)


def weighted_sum(out_PD: Tensor, order_P: Tensor, weights_NK: Tensor) -> Tensor:
    """The weighted sum of each token's outputs, `[N, D]`; `out_PD` holds pair `order_P[p]` in row p."""
    (tokens, experts), (pairs, width) = weights_NK.shape, out_PD.shape
    numbers_P = torch.arange(pairs, device=order_P.device)
    places_P = torch.empty_like(order_P).scatter_(0, order_P, numbers_P)
    out_ND = out_PD.new_empty(tokens, width)
    with torch.cuda.device_of(out_PD):
        _weighted_sum[(tokens, triton.cdiv(width, _COLUMNS))](
            out_PD.contiguous(),
            places_P,
            weights_NK.contiguous(),
            out_ND,
            D=width,
            K=experts,
            COLUMNS=_COLUMNS,
            num_warps=2,
            enable_fp_fusion=False,
        )
    return out_ND
