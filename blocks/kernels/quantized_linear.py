"""The product of activations with a quantized weight (see `codec`).

O outputs, I inputs.
"""

from math import prod

import torch
from torch import Tensor

from . import dispatch
from .batch_invariant import linear
from .codec import SCALE_DTYPE, WeightTensors, decode

# torch's product of bfloat16 activations with int8 weights on the CPU. Measured on 2 cores of an EPYC with
# AVX-512 at 2048 x 5632: 1 or 2 rows 0.5 ms (bfloat16 weights 1.3), 32 rows 5.1 (dequantizing first 4.3).
_INT8_MM_MAX_ROWS = 16
_INT8_MM_BLOCK = 64  # for other sizes it is wrong or reads out of bounds (torch 2.14)


def quantized_linear(x: Tensor, weight: WeightTensors) -> Tensor:
    """`x`, `[..., I]`, times a quantized weight `[O, I]`: `[..., O]`. Uses a product that reads the codes if
    there is one, else dequantizes the weight first, as the kernels for CUDA do for many rows."""
    rows, codes = prod(x.shape[:-1]), weight.codes
    if weight.kind == "int8" and x.device.type == "cpu" and x.dtype == SCALE_DTYPE:
        int8_mm = getattr(torch, "_weight_int8pack_mm", None)
        whole_blocks = codes.shape[0] % _INT8_MM_BLOCK == 0 and codes.shape[1] % _INT8_MM_BLOCK == 0
        if int8_mm is not None and whole_blocks and 0 < rows <= _INT8_MM_MAX_ROWS:
            return int8_mm(x.reshape(rows, -1).contiguous(), codes, weight.scale).view(*x.shape[:-1], -1)
    if rows and dispatch.can_use_kernels(x, codes):
        from . import gemv  # needs Triton

        return gemv.linear(x.reshape(rows, -1), weight).view(*x.shape[:-1], -1)
    return linear(x, decode(weight, x.dtype))
