"""Linear layers for few rows (gemv and thin gemm) on CUDA, which are bound by reading the weights once.

A row's bits don't depend on the number of rows: an output is one chain of tensor core steps over ascending
inputs, here and in the library (if it may not split sums), with quantized weights rounded to the dtype of
the activations. Steps split the inputs of layers with few outputs into parts with a chain each, which are the
same for any number of rows (`linear_in_parts`).

R rows, I inputs, O outputs, C columns of a tile as they are stored: inputs, or bytes of two inputs each in
int4. A weight is `[O, I]`, as in `nn.Linear`, or codes with scales as in `codec`. Tensor cores get the
weights as the long side of their tiles and the padded rows as the short one. A program loads its first
weights while it waits for the preceding kernel.
"""

# Triton kernels take tensors where their signatures name no types:
# pyright: reportArgumentType=false, reportCallIssue=false

from functools import cache, reduce
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import batch_invariant
from .codec import FP8_BLOCK, FP8_BLOCKS, WeightTensors
from .dequant import dot_in_float32
from .gemv_triton import decode_kernel, gemv_kernel
from .pdl import pdl_options, prefetch_options
from .rmsnorm_swiglu import swiglu

MAX_ROWS = 32
"""Most rows for which plain weights are multiplied here; for more, the library's products are faster."""
_MIN_GROUP = 16  # inputs that share a scale, at least: the depth of one tensor core instruction
_LEAST_INPUTS = 1024  # of a product in parts
_PART_MULTIPLE = 256  # inputs, which the blocks of every tile divide
_NARROW = range(1536, 2048)  # inputs or outputs of layers that are over before the next has started up
_MIN_SHARED_MEMORY = 99 << 10  # bytes per program on every GPU from Ampere on


class Tile(NamedTuple):
    """The tile of a program.

    outputs: outputs of the tile.
    bytes: bytes of each output's weights per iteration of the loop.
    rows: rows that the tile is padded to.
    flip: whether the rows, instead of the weights, are the long side of the tensor cores' tiles.
    groups: groups of inputs with a scale each, in int4 and fp8 blocks, per iteration.
    prefetch: bytes of weights that go into L2 while a program waits for the preceding kernel.
    early: whether the next kernel may start up, and load weights, before this one has waited.
    """

    outputs: int
    bytes: int
    warps: int
    stages: int
    rows: int = 8
    flip: bool = False
    groups: int = 1
    prefetch: int = 1 << 14
    early: bool = False


def limit_stages(tile: Tile, iteration_bytes: int, shared_memory: int) -> Tile:
    """The tile with as many pipeline stages as fit in shared memory, which holds what an iteration reads for
    all stages but one. (An H100 has 227 KiB, an A100 163, consumer GPUs 99.)"""
    return tile._replace(stages=max(1, min(tile.stages, shared_memory // iteration_bytes + 1)))


def plan_tile(kind: str, inputs: int, outputs: int, gated: bool, rows: int, groups: int = 1) -> Tile:
    """The tile for a product of `outputs` outputs, each of one weight row, or of two if `gated`; a weight row
    has `groups` int4 scales.

    Chosen from about forty candidates per shape, by the time of whole decode steps of Janus-Pro-1B and 7B on
    an H100 and of R1-Distill-Qwen-1.5B on an H200 (small products load while others compute). A warp
    multiplies 16 weight rows at a time; with more warps per row, each would decode the same codes.
    """
    if rows > 32:
        return Tile(64, 128, 4, 4, rows=64) if kind == "plain" else _tile_over_32_rows(kind, gated, groups)
    if kind == "int4":
        return _int4_tile(inputs, gated, rows, groups)
    if kind == "plain" and rows > 8:
        return _plain_tile_over_8_rows(inputs, outputs, gated, 16 if rows <= 16 else 32)
    tile = _plain_tile(inputs, outputs, gated) if kind == "plain" else _8_bit_tile(inputs, outputs, gated)
    if rows > 16:
        return tile._replace(rows=32, bytes=min(tile.bytes, 256), stages=3)
    return tile if rows <= tile.rows else tile._replace(rows=16, stages=min(tile.stages, 4))


def _narrow_tile(inputs: int, outputs: int, gated: bool) -> Tile:
    """For R1-Distill-Qwen-1.5B's layers. Those of 1B and 7B took longer when all kernels started up early."""
    if gated:
        return Tile(16, 512, 2, stages=3, prefetch=1 << 13, early=True)
    if outputs > inputs:
        return Tile(16, 512, 2, stages=4, prefetch=1 << 15, early=True)
    if outputs < inputs:
        return Tile(32, 512, 2, stages=4, early=True)
    return Tile(16, 512, 1, stages=4, prefetch=1 << 15, early=True)


def _plain_tile(inputs: int, outputs: int, gated: bool) -> Tile:
    if min(inputs, outputs) in _NARROW:
        return _narrow_tile(inputs, outputs, gated)
    if gated and inputs < 2048:
        return Tile(16, 512, 2, stages=3)
    if gated:
        return Tile(16, 512, 2, 3, 16, flip=True) if inputs == 2048 else Tile(32, 512, 4, 2, 16, flip=True)
    if outputs > inputs:  # queries, keys and values
        return Tile(32, 256, 2, stages=6) if outputs >= 4096 else Tile(16, 512, 2, stages=4)
    if outputs < inputs:
        return Tile(16, 512, 1, stages=6) if outputs < 4096 else Tile(32, 1024, 2, stages=5)
    if outputs <= 2048:
        return Tile(16, 512, 1, stages=4)
    return Tile(16, 1024, 2, stages=3) if outputs < 4096 else Tile(32, 512, 2, stages=4)


def _plain_tile_over_8_rows(inputs: int, outputs: int, gated: bool, rows: int) -> Tile:
    if rows == 16 and gated:
        return Tile(32, 256, 2, stages=4, rows=16) if inputs <= 2048 else Tile(32, 512, 4, 2, 16, flip=True)
    if rows == 16 and outputs < inputs:
        return Tile(16, 1024, 2, stages=3, rows=16) if outputs < 4096 else Tile(32, 1024, 2, 4, rows=16)
    if rows == 16 and (inputs > 2048 or outputs == inputs):
        return Tile(32, 256, 4, stages=6, rows=16)
    if gated:
        return Tile(32, 128, 4, stages=6, rows=32) if inputs >= 4096 else Tile(32, 256, 4, stages=3, rows=32)
    if outputs > inputs > 2048:
        return Tile(64, 128, 2, stages=5, rows=32)
    if inputs >= outputs >= 4096:
        return Tile(64, 256, 4, stages=6, rows=32)
    return Tile(64, 256, 4, stages=5 if outputs < inputs or inputs <= 2048 else 4, rows=32)


def _8_bit_tile(inputs: int, outputs: int, gated: bool) -> Tile:
    if gated:
        return Tile(16, 256, 2, stages=4)
    return Tile(32, 256, 2, stages=3 if outputs > inputs else 6)


def _int4_groups(groups: int, most: int) -> int:
    """Groups per iteration, a power of two that divides their number."""
    return min(groups & -groups, most)


def _int4_tile(inputs: int, gated: bool, rows: int, groups: int) -> Tile:
    if rows <= 8 and inputs >= 4096:
        at_once = _int4_groups(groups, 8)
        return Tile(32 if gated else 64, 32 * at_once, 4, 3 if at_once == 8 else 4, groups=at_once)
    at_once = _int4_groups(groups, 4)
    padded = max(8, 1 << (rows - 1).bit_length())
    return Tile(16 if gated else 32, 32 * at_once, 2, stages=4, rows=padded, groups=at_once)


def _tile_over_32_rows(kind: str, gated: bool, groups: int) -> Tile:
    """Two warps take the instructions that fewer rows take; four would take Hopper's, for which Triton gives
    converted codes to the steps of the chain in another order."""
    at_once = _int4_groups(groups, 2) if kind == "int4" else 1
    columns = 32 * at_once if kind == "int4" else 128
    return Tile(16 if gated else 32, columns, 2, stages=3, rows=64, groups=at_once)


def _columns_per_iteration(weight: WeightTensors, tile: Tile, chain: int) -> int:
    """Columns of a power of two; of several chains of so many columns, they divide it."""
    columns = weight.codes.shape[1]
    if weight.kind == "int4":
        return weight.group_columns * tile.groups
    block = min(max(32, tile.bytes // weight.codes.itemsize), max(32, triton.next_power_of_2(columns)))
    return block if chain == columns else min(block, chain & -chain)


def _groups_of(weight: WeightTensors, tile: Tile, columns: int) -> int:
    """Groups of inputs with a scale each in so many columns."""
    return max(1, columns // FP8_BLOCK) if weight.kind == FP8_BLOCKS else tile.groups


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program can have."""
    if device.type != "cuda":  # in the interpreter
        return 1 << 30
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", _MIN_SHARED_MEMORY)


def plan_part(kind: str, inputs: int, outputs: int) -> int:
    """Inputs of a part of `linear_in_parts`: all, or if outputs are too few to occupy a GPU, a share of them.
    Chosen from two to four shares per shape, as tiles were, on an H200."""
    if inputs < _LEAST_INPUTS or outputs > (2048 if kind == "plain" else 4096):
        return inputs
    if kind == "plain" and outputs in _NARROW:
        count, multiple = max(4, triton.cdiv(inputs, 1280)), _PART_MULTIPLE // 2
    else:
        least, most = (4, 1536) if kind == "int4" else (2, 2816)
        count, multiple = max(least, triton.cdiv(inputs, most)), _PART_MULTIPLE
    return triton.cdiv(triton.cdiv(inputs, count), multiple) * multiple


def _launch(
    x_RI: Tensor, weight: WeightTensors, gated: bool, bias: Tensor | None = None, part: int | None = None
) -> Tensor:
    """The product, or with `part`, those of each part of so many inputs, `[parts, R, O]`, in float32."""
    rows, codes = len(x_RI), weight.codes
    columns = codes.shape[1]
    outputs = len(codes) // (2 if gated else 1)
    tile = plan_tile(weight.kind, x_RI.shape[1], outputs, gated, rows, weight.groups)
    chain = columns if part is None else columns * part // x_RI.shape[1]
    block_columns = _columns_per_iteration(weight, tile, chain)
    block_inputs = block_columns * x_RI.shape[1] // columns
    weight_rows = tile.outputs * (2 if gated else 1)
    iteration_bytes = block_columns * codes.itemsize * weight_rows
    iteration_bytes += block_inputs * x_RI.itemsize * tile.rows
    tile = limit_stages(tile, iteration_bytes, shared_memory(x_RI.device))
    parts, out = triton.cdiv(columns, chain), x_RI.new_empty(rows, outputs)
    if parts > 1:
        assert chain % block_columns == 0, "a block would belong to two parts"
        out = torch.empty(parts, rows, outputs, dtype=torch.float32, device=x_RI.device)
    gemv_kernel[(triton.cdiv(outputs, tile.outputs), triton.cdiv(rows, tile.rows), parts)](
        x_RI.contiguous(),
        *weight.kernel_arguments,
        bias,
        out,
        rows,
        O=outputs,
        COLUMNS=columns,
        KIND=weight.kind,
        FLOAT32=dot_in_float32(x_RI.dtype),
        FLIP=tile.flip,
        BLOCK_R=tile.rows,
        BLOCK_O=tile.outputs,
        BLOCK_C=block_columns,
        GROUPS=_groups_of(weight, tile, block_columns),
        GATED=gated,
        CHAIN=chain,
        **prefetch_options(codes, tile.prefetch // weight_rows),
        EARLY=tile.early,
        num_warps=tile.warps,
        num_stages=tile.stages if x_RI.dtype != torch.float32 else min(tile.stages, 2),
        **pdl_options(out),
    )
    return out


def decode(weight: WeightTensors, dtype: torch.dtype) -> Tensor:
    """The dequantized weight, `[O, I]`, of the numbers that the products take."""
    outputs, columns = weight.codes.shape
    per_column, tile_columns, groups = 1, FP8_BLOCK, 1
    if weight.kind == "int4":
        per_column, groups = 2, _int4_groups(weight.groups, 4)
        tile_columns = weight.group_columns * groups
    out = torch.empty(outputs, per_column * columns, dtype=dtype, device=weight.codes.device)
    decode_kernel[(triton.cdiv(outputs, 32), triton.cdiv(columns, tile_columns))](
        *weight.kernel_arguments,
        out,
        O=outputs,
        COLUMNS=columns,
        KIND=weight.kind,
        FLOAT32=dot_in_float32(dtype),
        BLOCK_O=32,
        BLOCK_C=tile_columns,
        GROUPS=groups,
    )
    return out


def supports(x_RI: Tensor, weight: WeightTensors) -> bool:
    """Whether the kernel takes these rows: for plain weights, few rows in half precision with a multiple of
    16 inputs; for quantized ones any rows, unless int4 groups are too small."""
    if weight.kind != "plain":
        return x_RI.shape[1] // weight.groups >= _MIN_GROUP
    return len(x_RI) <= MAX_ROWS and x_RI.dtype != torch.float32 and x_RI.shape[1] % 16 == 0


def linear(x_RI: Tensor, weight: WeightTensors, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, `[R, O]`, with quantized weights rounded to the dtype of `x_RI`. A `bias` `[O]` is added
    before the sums are rounded."""
    if supports(x_RI, weight):
        return _launch(x_RI, weight, False, bias)
    numbers = weight.codes if weight.kind == "plain" else decode(weight, x_RI.dtype)
    return batch_invariant.linear(x_RI, numbers, bias)


def linear_in_parts(x_RI: Tensor, weight: WeightTensors) -> Tensor:
    """`linear` without bias, or where outputs are few, float32 `[parts, R, O]` whose sum it is, for a next
    kernel to add (`add_norm`): products of shares of the inputs, for more programs and shorter chains. The
    shares depend on the weight alone, so a row's bits don't depend on the number of rows; but they are others
    than those of `linear`."""
    inputs = x_RI.shape[1]
    part = plan_part(weight.kind, inputs, len(weight.codes))
    if part == inputs or not supports(x_RI[:1], weight):
        return linear(x_RI, weight)
    return _launch(x_RI, weight, False, part=part)


def add_parts(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """What `add_norm` adds: the product `[R, O]` itself, or the sum of its parts."""
    return parts if parts.ndim == 2 else reduce(torch.add, parts).to(dtype)


def linear_swiglu(x_RI: Tensor, weight: WeightTensors) -> Tensor:
    """`silu(gate) * up`, `[R, O / 2]`, for a weight of the gate's rows followed by those of the up
    projection."""
    return _launch(x_RI, weight, gated=True) if supports(x_RI, weight) else swiglu(linear(x_RI, weight))
