"""Triton functions that dequantize codes in registers.

Triton converts int8 to bfloat16 in two instructions per code, float8 to bfloat16 in many (on a unit with a
quarter of the usual rate), and has no 4-bit type. So for bfloat16, numbers are assembled from the codes'
bits, four bytes at a time.

O outputs, C columns.
"""

# Triton kernels are not what their Python types say.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false

import os

import torch
import triton
import triton.language as tl

from .codec import FP8_BLOCK

GROUP_INPUTS = tl.constexpr(FP8_BLOCK)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, as in tests on the CPU."""


def dot_in_float32(dtype: torch.dtype) -> bool:
    """Whether `tl.dot` gets float32 operands: always in the interpreter, which can't multiply bfloat16."""
    return INTERPRETED or dtype == torch.float32


# A float8 s eeee mmm in the upper byte of 16 bits, with exponent and mantissa shifted right by 4, is a
# bfloat16 with the same fields. Multiplying it by 2^120 (0x7b80) corrects the exponent's bias, 127 instead
# of 7.
_FLOAT8_PAIR = """
    prmt.b32 spread, $2, 0, {pick};
    shr.b32 fields, spread, 4;
    and.b32 fields, fields, 0x07f007f0;
    lop3.b32 spread, spread, 0x80008000, fields, 0xea;
    fma.rn.bf16x2 {out}, spread, by, none;"""
_FLOAT8 = tl.constexpr(
    "{.reg .b32 spread, fields, by, none; mov.b32 by, 0x7b807b80; mov.b32 none, 0x80008000;"
    + _FLOAT8_PAIR.format(pick="0x1404", out="$0")
    + _FLOAT8_PAIR.format(pick="0x3424", out="$1")
    + "}"
)

# The byte 0x43 followed by a byte with a 4-bit code is the bfloat16 128 + code; subtracting 136 (0x4308)
# gives code - 8. The low halves of the bytes come out in two registers, the high halves in two more.
_INT4_PAIR = """
    prmt.b32 spread, $4, 0, {pick};
    lop3.b32 number, spread, 0x000f000f, 0x43004300, 0xea;
    fma.rn.bf16x2 {low}, number, one, less;
    shr.b32 spread, spread, 4;
    lop3.b32 number, spread, 0x000f000f, 0x43004300, 0xea;
    fma.rn.bf16x2 {high}, number, one, less;"""
_INT4 = tl.constexpr(
    "{.reg .b32 spread, number, one, less; mov.b32 one, 0x3f803f80; mov.b32 less, 0xc308c308;"
    + _INT4_PAIR.format(pick="0x4140", low="$0", high="$2")
    + _INT4_PAIR.format(pick="0x4342", low="$1", high="$3")
    + "}"
)


# Ampere has no bfloat16 product without a sum.
_SCALE = tl.constexpr("{.reg .b32 none; mov.b32 none, 0x80008000; fma.rn.bf16x2 $0, $1, $2, none;}")
_SCALE_INT4 = tl.constexpr("fma.rn.bf16x2 $0, $1, $2, $3;")


@triton.jit
def unpack_int4(codes, DTYPE: tl.constexpr):
    """Bytes of two int4 codes -> (even inputs, odd inputs) in DTYPE, each `code - 8`."""
    if tl.bfloat16 == DTYPE:
        even, odd = tl.inline_asm_elementwise(
            _INT4, "=r,=r,=r,=r,r", [codes], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    else:
        even, odd = (codes & 15).to(DTYPE) - 8.0, (codes >> 4).to(DTYPE) - 8.0
    return even, odd


@triton.jit
def dequantize(codes, scale, zero, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """Codes `[O, C]` -> numbers in DTYPE, `[O, C]`, or for int4 `[O, 2 C]`. `scale` is `[O]`; in int4, scales
    and zeros of groups of columns are `[O, G]`, and so are the scales of fp8 blocks. Each number, `scale *
    code` or in int4 `scale * (code - 8) + zero`, is rounded once."""
    if KIND == "plain":
        numbers = codes.to(DTYPE)
    elif KIND == "int4":
        shape: tl.constexpr = (scale.shape[0], scale.shape[1], 2 * codes.shape[1] // scale.shape[1])
        joined: tl.constexpr = (codes.shape[0], 2 * codes.shape[1])
        even, odd = unpack_int4(codes, DTYPE)
        numbers = tl.reshape(tl.join(even.to(DTYPE), odd.to(DTYPE)), joined)
        scale = tl.reshape(tl.broadcast_to(scale[:, :, None], shape), joined)
        zero = tl.reshape(tl.broadcast_to(zero[:, :, None], shape), joined)
        if tl.bfloat16 == DTYPE:
            numbers = tl.inline_asm_elementwise(
                _SCALE_INT4, "=r,r,r,r", [numbers, scale, zero], dtype=tl.bfloat16, is_pure=True, pack=2
            )
        else:
            numbers = (numbers.to(tl.float32) * scale.to(tl.float32) + zero.to(tl.float32)).to(DTYPE)
    elif KIND == "fp8_blocks":
        shape: tl.constexpr = (scale.shape[0], scale.shape[1], codes.shape[1] // scale.shape[1])
        scale = tl.reshape(tl.broadcast_to(scale[:, :, None], shape), codes.shape)
        if tl.bfloat16 == DTYPE:
            bits = codes.to(tl.int8, bitcast=True)
            numbers = tl.inline_asm_elementwise(
                _FLOAT8, "=r,=r,r", [bits], dtype=tl.bfloat16, is_pure=True, pack=4
            )
        else:
            numbers = codes
        numbers = (numbers.to(tl.float32) * scale).to(DTYPE)
    elif tl.bfloat16 == DTYPE:
        if KIND == "fp8":
            bits = codes.to(tl.int8, bitcast=True)
            numbers = tl.inline_asm_elementwise(
                _FLOAT8, "=r,=r,r", [bits], dtype=tl.bfloat16, is_pure=True, pack=4
            )
        else:
            numbers = codes.to(tl.bfloat16)
        scale = tl.broadcast_to(scale[:, None], codes.shape)
        numbers = tl.inline_asm_elementwise(
            _SCALE, "=r,r,r", [numbers, scale], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    else:
        numbers = (codes.to(tl.float32) * scale.to(tl.float32)[:, None]).to(DTYPE)
    return numbers
