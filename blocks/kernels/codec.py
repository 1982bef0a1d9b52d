"""Weight-only quantization to int8, fp8 and int4: encoding and decoding tensors.

O outputs, I inputs, G groups of inputs that share a scale, E experts. A weight is `[O, I]`, or a stack of
them `[E, O, I]`.

int8: symmetric, one scale per output: `w = scale * code`, codes -127..127. fp8: the same with float8_e4m3fn
codes, which have 4 significant bits and a maximum of 448 (Micikevicius et al. 2022, arXiv 2209.05433, table
1), so small weights keep more bits than in int8, the largest fewer. int4: asymmetric, a scale and a zero per
group of up to 64 inputs: `w = zero + scale * (code - 8)`, codes 0..15, two per byte (even input in the low
half). Codes are computed from the rounded bfloat16 scales, so the error is at most half a step (in int4, plus
what rounding shifts the ends of a group by).

fp8_blocks: fp8 codes in blocks of 128 x 128 with a scale each, as DeepSeek-V3 stores them. In memory every
output has its own copy of its scales, `[O, G]` in float32 for G groups of 128 inputs, so that weights can be
joined and cut at any output.
"""

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

KINDS = ("int8", "int4", "fp8")
FP8_BLOCKS = "fp8_blocks"
"""The kind of weights that are stored in fp8 blocks, and kept so. None are encoded to it."""
CODE_DTYPES = {
    "int8": torch.int8,
    "int4": torch.uint8,
    "fp8": torch.float8_e4m3fn,
    FP8_BLOCKS: torch.float8_e4m3fn,
}
GROUP_SIZE = 64
"""Inputs of an int4 group where that divides their number; else the greatest common divisor of both."""
SCALE_DTYPE = torch.bfloat16
FP8_BLOCK = 128
"""Rows and columns of a block of fp8 weights that share a scale in DeepSeek-V3's checkpoints."""


def group_size(inputs: int) -> int:
    """Inputs that share an int4 scale and zero."""
    return gcd(inputs, GROUP_SIZE)


def scales_per_output(kind: str, inputs: int) -> int | None:
    """Scales of an output's weights, where it has more than one; None for a single one."""
    if kind == FP8_BLOCKS:
        return -(-inputs // FP8_BLOCK)
    return inputs // group_size(inputs) if kind == "int4" else None


def scale_dtype(kind: str) -> torch.dtype:
    """The dtype of scales."""
    return torch.float32 if kind == FP8_BLOCKS else SCALE_DTYPE


@dataclass(frozen=True)
class WeightTensors:
    """A linear weight, or a stack of them, in the form that kernels take: plain numbers in `codes` (kind
    "plain"), or codes with scales and, in int4, zeros."""

    codes: Tensor
    scale: Tensor | None = None
    zero: Tensor | None = None
    kind: str = "plain"

    def __getitem__(self, index: int | Tensor) -> "WeightTensors":
        """One weight of a stack, or a stack of several."""
        scale, zero = (None if part is None else part[index] for part in (self.scale, self.zero))
        return WeightTensors(self.codes[index], scale, zero, self.kind)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def groups(self) -> int:
        """Scales of an output, each of a group of inputs."""
        return 1 if self.scale is None or self.scale.ndim < self.codes.ndim else self.scale.shape[-1]

    @property
    def group_columns(self) -> int:
        """Columns of `codes` that share a scale: in int4 (of two inputs each) and fp8 blocks; 1 for other
        kinds."""
        if self.kind == FP8_BLOCKS:
            return FP8_BLOCK
        return 1 if self.zero is None else self.codes.shape[-1] // self.zero.shape[-1]

    @property
    def named(self) -> dict[str, Tensor]:
        """The tensors that this kind has, by field name."""
        fields = {"codes": self.codes, "scale": self.scale, "zero": self.zero}
        return {name: tensor for name, tensor in fields.items() if tensor is not None}

    @property
    def kernel_arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scale and zero as kernel arguments. Missing ones are replaced by tensors that the kernel
        does not read."""
        scale = self.codes if self.scale is None else self.scale
        return self.codes, scale, scale if self.zero is None else self.zero


def _encode_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`[O, I]` -> codes int8 `[O, I]`, scales `[O]`."""
    exact = weight.float()
    largest = exact.abs().amax(-1)
    scale = torch.where(largest > 0, largest / 127, 1.0).to(SCALE_DTYPE)
    codes = (exact / scale.float()[..., None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scale


def _encode_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`[O, I]` -> codes float8_e4m3fn `[O, I]`, scales `[O]`."""
    exact, limit = weight.float(), torch.finfo(torch.float8_e4m3fn).max
    largest = exact.abs().amax(-1)
    scale = torch.where(largest > 0, largest / limit, 1.0).to(SCALE_DTYPE)
    scale = scale.clamp(min=torch.finfo(SCALE_DTYPE).tiny)
    # A scale that was rounded down leads to numbers beyond the limit, which the cast may turn into NaN.
    return (exact / scale.float()[..., None]).clamp(-limit, limit).to(torch.float8_e4m3fn), scale


def _encode_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`[O, I]` -> codes uint8 `[O, I / 2]`, scales and zeros `[O, G]`."""
    groups = weight.float().unflatten(-1, (-1, group_size(weight.shape[-1])))
    low, high = groups.amin(-1), groups.amax(-1)
    scale = torch.where(high > low, (high - low) / 15, 1.0).to(SCALE_DTYPE)
    zero = torch.where(high > low, low + 8 * scale.float(), low).to(SCALE_DTYPE)
    steps = (groups - zero.float()[..., None]) / scale.float()[..., None]
    codes = (steps.round() + 8).clamp(0, 15).to(torch.uint8).flatten(-2)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), scale, zero


_ENCODERS = {"int8": _encode_int8, "int4": _encode_int4, "fp8": _encode_fp8}


def encode(weight: Tensor, kind: str) -> WeightTensors:
    """Quantize a weight `[O, I]`, or a stack `[E, O, I]` one weight at a time, which bounds memory."""
    encoder = _ENCODERS[kind]
    if weight.ndim == 2:
        return WeightTensors(*encoder(weight), kind=kind)
    return WeightTensors(*map(torch.stack, zip(*map(encoder, weight), strict=True)), kind=kind)


def unpack_int4(codes: Tensor) -> Tensor:
    """Bytes `[..., I / 2]` -> codes 0..15, uint8 `[..., I]`."""
    return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)


def decode(weight: WeightTensors, dtype: torch.dtype) -> Tensor:
    """Dequantize a weight; each number is rounded to `dtype` once."""
    codes, scale, zero = weight.codes, weight.scale, weight.zero
    assert scale is not None, "a plain weight has no codes"
    if weight.kind == FP8_BLOCKS:
        return _decode_groups(codes, scale).to(dtype)
    if zero is None:
        # The exact product of two 8-bit significands is rounded once in bfloat16 too, so float32 isn't
        # needed.
        work = dtype if dtype == SCALE_DTYPE else torch.float32
        return (codes.to(work) * scale.to(work)[..., None]).to(dtype)
    steps = unpack_int4(codes).float().unflatten(-1, (scale.shape[-1], -1)) - 8
    return (steps * scale.float()[..., None] + zero.float()[..., None]).flatten(-2).to(dtype)


def decode_rows(codes: Tensor, scale: Tensor) -> Tensor:
    """The weight in float32 of int8 codes with one scale for each row, that is, for each index of its first
    dimensions, those of `scale`: `[O, I]` with `[O]`, `[O, C, H, W]` of a convolution with `[O]`."""
    return codes.float() * scale.float().reshape(*scale.shape, *[1] * (codes.ndim - scale.ndim))


def decode_blocks(codes_OI: Tensor, scale: Tensor) -> Tensor:
    """The weight `[O, I]` in float32 of fp8 codes in blocks of `FP8_BLOCK` x `FP8_BLOCK`, one scale each;
    those at the ends may be smaller (DeepSeek-V3, sec. 3.3.2)."""
    return _decode_groups(codes_OI, repeat_rows(scale, len(codes_OI)))


def repeat_rows(scale: Tensor, outputs: int) -> Tensor:
    """The scales of blocks, `[blocks of outputs, ...]`, for each output."""
    return scale.float().repeat_interleave(FP8_BLOCK, 0)[:outputs]


def _decode_groups(codes: Tensor, scale: Tensor) -> Tensor:
    """The weight `[..., O, I]` in float32 of codes with a scale for each `FP8_BLOCK` inputs of an output."""
    return scale.repeat_interleave(FP8_BLOCK, -1)[..., : codes.shape[-1]] * codes.float()
