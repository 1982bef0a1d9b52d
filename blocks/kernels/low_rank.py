"""Low-rank products (LoRA) of rows with different adapters, added to the outputs of linear layers, in two
launches: into the ranks ("shrink"), and to the outputs ("expand").

N rows, S slots of adapters, P layers with the same input, R rank of each, I inputs, O outputs of all layers,
C chunks of inputs.

The definition is `LowRankLinear` in placement/adapted.py. A tile is of 16 rows, of which a program multiplies
those of one adapter at a time, so that an adapter's factors are read once a tile (the idea of Punica, Chen et
al. 2023, arXiv 2310.18547). A row's sums have an order of their own: chains over ascending inputs within
chunks, then over chunks, then over ranks. So its bits don't depend on the rows beside it, and rows without
an adapter stay as they are.
"""

# Triton kernels are not what their Python types say:
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportIndexIssue=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dequant import dot_in_float32
from .pdl import pdl_options, wait_then_trigger

RANK_MULTIPLE = 16
"""Ranks are multiples of this: the depth of one tensor core instruction."""
_ROWS = 16  # of a tile
_CHUNK = 1024  # inputs of a program that shrinks; more programs hide the latency of reading
_MOST_LAYERS = 3  # with the same input: queries, keys and values


@triton.jit(do_not_specialize=["N"])
def _shrink(
    x, a, slots, sums, N, x_stride,
    I: tl.constexpr, RANKS: tl.constexpr, S: tl.constexpr, FLOAT32: tl.constexpr,  # noqa: E741
    CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """The sums of a tile of rows and ranks over a chunk of inputs, for the rows of one slot."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    slot, chunk = tl.program_id(2) % S, tl.program_id(2) // S
    dtype: tl.constexpr = tl.float32 if FLOAT32 else x.dtype.element_ty
    wait_then_trigger(PDL)
    own = tl.load(slots + n, mask=n < N, other=-1) == slot
    if tl.max(own.to(tl.int32), axis=0) > 0:
        acc = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
        rows = x + n.to(tl.int64)[:, None] * x_stride
        factors = a + (slot.to(tl.int64) * RANKS + r)[:, None] * I
        for first in range(0, CHUNK, BLOCK_I):
            i = chunk * CHUNK + first + tl.arange(0, BLOCK_I)
            inputs = tl.load(rows + i[None, :], mask=own[:, None] & (i < I)[None, :], other=0.0).to(dtype)
            numbers = tl.load(factors + i[None, :], mask=(i < I)[None, :], other=0.0).to(dtype)
            acc = tl.dot(inputs, tl.trans(numbers), acc, input_precision="ieee")
        at = (chunk * N + n).to(tl.int64)[:, None] * RANKS + r[None, :]
        tl.store(sums + at, acc, mask=own[:, None])


@triton.jit(do_not_specialize=["N"])
def _expand(
    y, sums, b, slots, N,
    W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr,
    R: tl.constexpr, P: tl.constexpr, S: tl.constexpr, CHUNKS: tl.constexpr, FLOAT32: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_R: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Add to a tile of the outputs, of one layer, the products of its rows' adapters. The layers' widths are
    W0, W1 and W2."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tile = tl.program_id(1)
    tiles0: tl.constexpr = (W0 + BLOCK_O - 1) // BLOCK_O
    tiles1: tl.constexpr = (W1 + BLOCK_O - 1) // BLOCK_O
    layer = (tile >= tiles0).to(tl.int32) + (tile >= tiles0 + tiles1).to(tl.int32)
    first_tile = tl.where(layer == 0, 0, tl.where(layer == 1, tiles0, tiles0 + tiles1))
    first = tl.where(layer == 0, 0, tl.where(layer == 1, W0, W0 + W1))
    end = tl.where(layer == 0, W0, tl.where(layer == 1, W0 + W1, W0 + W1 + W2))
    o = first + (tile - first_tile) * BLOCK_O + tl.arange(0, BLOCK_O)
    outputs: tl.constexpr = W0 + W1 + W2
    dtype: tl.constexpr = y.dtype.element_ty
    dot_dtype: tl.constexpr = tl.float32 if FLOAT32 else dtype
    wait_then_trigger(PDL)
    slot_of_row = tl.load(slots + n, mask=n < N, other=-1)
    if tl.max(slot_of_row, axis=0) >= 0:
        acc = tl.zeros([BLOCK_N, BLOCK_O], tl.float32)
        k = tl.arange(0, BLOCK_R)
        for slot in range(S):
            own = slot_of_row == slot
            if tl.max(own.to(tl.int32), axis=0) > 0:
                for rank in range(0, R, BLOCK_R):
                    inner = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
                    for chunk in range(CHUNKS):
                        at = (chunk * N + n).to(tl.int64)[:, None] * (P * R) + layer * R + rank + k[None, :]
                        inner += tl.load(sums + at, mask=own[:, None], other=0.0)
                    rows = (slot * outputs + o).to(tl.int64)
                    numbers = tl.load(
                        b + rows[:, None] * R + rank + k[None, :], mask=(o < end)[:, None], other=0.0
                    )
                    inner = inner.to(dtype).to(dot_dtype)
                    acc = tl.dot(inner, tl.trans(numbers.to(dot_dtype)), acc, input_precision="ieee")
        pointers = y + n.to(tl.int64)[:, None] * outputs + o[None, :]
        mask = (slot_of_row >= 0)[:, None] & (o < end)[None, :]
        total = tl.load(pointers, mask=mask, other=0.0).to(tl.float32) + acc.to(dtype).to(tl.float32)
        tl.store(pointers, total.to(dtype), mask=mask)


def add_low_rank(
    y_NO: Tensor, x_NI: Tensor, a_SPRI: Tensor, b_SOR: Tensor, slots_N: Tensor, widths: Sequence[int]
) -> None:
    """Add to each row of `y_NO`, the outputs of up to three layers of these `widths` side by side, the
    products of its adapter: `y += b(a(x))`, by the factors in the slot of int64 `slots_N`, -1 for none."""
    slots, layers, rank, inputs = a_SPRI.shape
    assert layers == len(widths) <= _MOST_LAYERS
    assert rank % RANK_MULTIPLE == 0
    assert y_NO.is_contiguous()
    x_NI = x_NI if x_NI.stride(1) == 1 else x_NI.contiguous()
    rows, chunks = len(y_NO), triton.cdiv(inputs, _CHUNK)
    sums = torch.empty(chunks, rows, layers * rank, dtype=torch.float32, device=y_NO.device)
    full = y_NO.dtype == torch.float32
    both = {"S": slots, "FLOAT32": dot_in_float32(y_NO.dtype), "BLOCK_N": _ROWS, "BLOCK_R": RANK_MULTIPLE}
    both |= {"num_warps": 4, **pdl_options(y_NO)}
    row_tiles, block_i = triton.cdiv(rows, _ROWS), 128 if full else 256
    _shrink[(row_tiles, layers * rank // RANK_MULTIPLE, slots * chunks)](
        x_NI,
        a_SPRI,
        slots_N,
        sums,
        rows,
        x_NI.stride(0),
        I=inputs,
        RANKS=layers * rank,
        CHUNK=min(_CHUNK, triton.cdiv(inputs, block_i) * block_i),
        BLOCK_I=block_i,
        num_stages=2 if full else 4,
        **both,
    )
    block_o = 64 if rows <= _ROWS else 128
    w0, w1, w2 = (*widths, 0, 0)[:_MOST_LAYERS]
    grid = (row_tiles, sum(triton.cdiv(width, block_o) for width in widths))
    sizes = {"W0": w0, "W1": w1, "W2": w2, "R": rank, "P": layers, "CHUNKS": chunks, "BLOCK_O": block_o}
    _expand[grid](y_NO, sums, b_SOR, slots_N, rows, **sizes, num_stages=2, **both)
