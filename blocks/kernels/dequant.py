"""Parts of Triton kernels: codes of quantized weights as numbers, in the registers where they lie.

Triton's own conversion from int8 to bfloat16 is two instructions a code; from float8 to bfloat16 it is many,
through a unit that takes a quarter of the others' rate, and 4 bits it knows nothing of. So for bfloat16 these
are made of the codes' bits, four bytes at a time. O outputs, C columns.
"""

# What Triton's compiler reads is not what a checker of types takes it for.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

# A byte s eeee mmm in the upper half of 16 bits, its exponent and mantissa moved down by 4: the bfloat16 of
# the same fields, whose exponent has a bias of 127 instead of 7. Times 2^120 (0x7b80) that is the number.
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

# 0x43 over a code of 4 bits is the bfloat16 of 128 + code; 136 (0x4308) less is code - 8. Low halves of the
# bytes come out in two registers, high ones in two more.
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


@triton.jit
def unpack(codes, KIND: tl.constexpr, KEPT: tl.constexpr):
    """Codes `[O, C]` as numbers in KEPT, not scaled: `[O, C]`, or of int4 `[O, 2 C]`, each code less 8."""
    if KIND == "int4":
        if tl.bfloat16 == KEPT:
            low, high = tl.inline_asm_elementwise(
                _INT4, "=r,=r,=r,=r,r", [codes], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
            )
        else:
            low, high = (codes & 15).to(KEPT) - 8.0, (codes >> 4).to(KEPT) - 8.0
        numbers = tl.reshape(tl.join(low.to(KEPT), high.to(KEPT)), (codes.shape[0], 2 * codes.shape[1]))
    elif KIND == "fp8" and tl.bfloat16 == KEPT:
        bits = codes.to(tl.int8, bitcast=True)
        numbers = tl.inline_asm_elementwise(
            _FLOAT8, "=r,=r,r", [bits], dtype=tl.bfloat16, is_pure=True, pack=4
        )
    else:
        numbers = codes.to(KEPT)
    return numbers
