"""An int4 weight times few rows on CUDA, in one Triton kernel that reads the codes where they lie.

M rows, O outputs, I inputs. One row or two are multiplied without the tensor cores: bringing decoded weights
into their order takes three times as long as multiplying (measured on an H100 at 4096 x 11008).
"""

# What Triton compiles is not what its Python types say:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .quantized_weight import Weight
from .row_products import ROWS, exact_products, few, loop_sizes, many

_TWO = 2  # rows that are multiplied without the tensor cores
_TILE, _TILE_MANY = 16, 32


@triton.jit(do_not_specialize=["M"])
def _product_kernel(
    x_ptr,
    w_ptr,
    scale_ptr,
    zero_ptr,
    out_ptr,
    M,
    O: tl.constexpr,  # noqa: E741
    COLUMNS: tl.constexpr,
    HALF: tl.constexpr,
    EXACT: tl.constexpr,
    R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """A tile of outputs for R rows: one or two, or those of a tile."""
    first, tile = tl.program_id(0) * R, tl.program_id(1) * BLOCK_O
    columns = tile + tl.arange(0, BLOCK_O)
    outs = tl.minimum(columns, O - 1)
    groups: tl.constexpr = COLUMNS // HALF
    kind = out_ptr.dtype.element_ty
    if R <= 2:
        sums, other = few(
            x_ptr, x_ptr + 2 * COLUMNS, w_ptr, scale_ptr, zero_ptr, outs, COLUMNS, groups,
            COLUMNS, "int4", HALF, R == 2, BLOCK_O, BLOCK_C, UNROLL,
        )  # fmt: skip
        tl.store(out_ptr + columns, sums.to(kind), mask=columns < O)
        if R == 2:
            tl.store(out_ptr + O + columns, other.to(kind), mask=columns < O)
    else:
        rows = first + tl.arange(0, R)
        sums = many(
            x_ptr, rows, rows < M, w_ptr, scale_ptr, zero_ptr, outs, COLUMNS, groups,
            COLUMNS, "int4", HALF, EXACT, R, BLOCK_O, BLOCK_C,
        )  # fmt: skip
        mask = (rows < M)[:, None] & (columns < O)[None, :]
        tl.store(out_ptr + rows[:, None] * O + columns[None, :], sums.to(kind), mask=mask)


def multiply(x_MI: Tensor, weight: Weight) -> Tensor:
    """`x` times a weight in int4, `[M, O]`."""
    assert weight.scale is not None
    x_MI = x_MI.contiguous()
    count, (outs, columns) = len(x_MI), weight.codes.shape
    rows = count if count <= _TWO else ROWS
    tile = _TILE if count <= _TWO else _TILE_MANY
    out_MO = x_MI.new_empty(count, outs)
    _product_kernel[(triton.cdiv(count, rows), triton.cdiv(outs, tile))](
        x_MI,
        weight.codes,
        weight.scale,
        weight.zero,
        out_MO,
        count,
        O=outs,
        COLUMNS=columns,
        HALF=columns // weight.scale.shape[1],
        EXACT=exact_products(x_MI.dtype),
        R=rows,
        BLOCK_O=tile,
        num_stages=2 if x_MI.dtype == torch.float32 else 4,
        **loop_sizes(x_MI.shape[1], "int4", rows > _TWO),
    )
    return out_MO
