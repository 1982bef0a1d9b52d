"""Weights in 8 or 4 bits, and products with them. The activations stay what they are.

O outputs, I inputs, G inputs of a group, E experts, N tokens, K experts a token, D model width. A weight is
`[O, I]`, or a stack of them `[E, O, I]`.

int8: symmetric, one scale an output: `w = scale * code`, codes -127..127. fp8: the same with codes in
float8_e4m3fn: 4 significant bits, up to 448 (Micikevicius et al. 2022, arXiv 2209.05433, table 1), so that
small weights keep more bits than in int8 and the largest fewer. int4: groups of up to 64 inputs with a scale
and a zero each: `w = zero + scale * (code - 8)`, codes 0..15, two to a byte (even input in the low half).
Codes are computed from the rounded scales, so that bfloat16 scales cost no more than half a step (int4: plus
what rounding moves the ends of a group by).
"""

from math import gcd, prod
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..kernels import dispatch
from ..kernels.batch_invariant import linear

KINDS = ("int8", "int4", "fp8")
CODES = {"int8": torch.int8, "int4": torch.uint8, "fp8": torch.float8_e4m3fn}
GROUP = 64
"""Inputs of an int4 group, where that divides their number; else its greatest common divisor with it."""
SCALE_DTYPE = torch.bfloat16

# torch's product of bfloat16 activations with int8 weights on the CPU. Measured on 2 cores of an EPYC with
# AVX-512 at 2048 x 5632: 1 or 2 rows 0.5 ms (bfloat16 weights 1.3), 32 rows 5.1 (dequantising first 4.3).
_int8_product = getattr(torch, "_weight_int8pack_mm", None)
_FEW_ROWS = 16
_MOST_ROWS = 64  # that kernels multiply on CUDA; for more, decoding the weight once costs little
_WHOLE = 64  # it works in blocks; at other sizes it is wrong, or reads behind its arguments (torch 2.14)


class Weight(NamedTuple):
    """A weight as kernels take it: numbers `[O, I]` of the rows' dtype ("plain"), or codes with their scales
    and, in int4, zeros."""

    codes: Tensor
    scale: Tensor | None = None
    zero: Tensor | None = None
    kind: str = "plain"


def group_size(inputs: int) -> int:
    return gcd(inputs, GROUP)


def encode_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`[..., O, I]` -> codes int8 of that shape, scales bfloat16 `[..., O]`."""
    exact = weight.float()
    top = exact.abs().amax(-1)
    scale = torch.where(top > 0, top / 127, 1.0).to(SCALE_DTYPE)
    codes = (exact / scale.float()[..., None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scale


def encode_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`[..., O, I]` -> codes float8_e4m3fn of that shape, scales bfloat16 `[..., O]`."""
    exact, largest = weight.float(), torch.finfo(torch.float8_e4m3fn).max
    top = exact.abs().amax(-1)
    scale = torch.where(top > 0, top / largest, 1.0).to(SCALE_DTYPE).clamp(min=torch.finfo(SCALE_DTYPE).tiny)
    # A rounded scale leads beyond the largest number, of which a conversion may make NaN.
    return (exact / scale.float()[..., None]).clamp(-largest, largest).to(torch.float8_e4m3fn), scale


def encode_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`[..., O, I]` -> codes uint8 `[..., O, I/2]`, scales and zeros bfloat16 `[..., O, I/G]`."""
    groups = weight.float().unflatten(-1, (-1, group_size(weight.shape[-1])))
    low, high = groups.amin(-1), groups.amax(-1)
    scale = torch.where(high > low, (high - low) / 15, 1.0).to(SCALE_DTYPE)
    zero = torch.where(high > low, low + 8 * scale.float(), low).to(SCALE_DTYPE)
    steps = (groups - zero.float()[..., None]) / scale.float()[..., None]
    codes = (steps.round() + 8).clamp(0, 15).to(torch.uint8).flatten(-2)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), scale, zero


def unpack_int4(codes: Tensor) -> Tensor:
    """Bytes `[..., I/2]` -> codes 0..15, uint8 `[..., I]`."""
    return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)


def decode(codes: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weights that codes stand for, rounded to `dtype` once."""
    if zero is None:
        # In bfloat16 the product of two numbers of up to 8 bits is rounded like the exact one: no detour.
        work = dtype if dtype == SCALE_DTYPE else torch.float32
        return (codes.to(work) * scale.to(work)[..., None]).to(dtype)
    steps = unpack_int4(codes).float().unflatten(-1, (scale.shape[-1], -1)) - 8
    return (steps * scale.float()[..., None] + zero.float()[..., None]).flatten(-2).to(dtype)


def product(x: Tensor, kind: str, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """`x [..., I]` times one quantized weight `[O, I]`, `[..., O]`: decoded, or by a product of the codes."""
    rows = prod(x.shape[:-1])
    if _int8_product is not None and kind == "int8" and x.device.type == "cpu" and x.dtype == SCALE_DTYPE:
        whole = codes.shape[0] % _WHOLE == 0 and codes.shape[1] % _WHOLE == 0
        if whole and 0 < rows <= _FEW_ROWS:
            return _int8_product(x.reshape(rows, -1).contiguous(), codes, scale).view(*x.shape[:-1], -1)
    if 0 < rows <= _MOST_ROWS and dispatch.serves(x, codes):
        from ..kernels.gemv import product as multiply  # needs Triton

        return multiply(x.reshape(rows, -1), Weight(codes, scale, zero, kind)).view(*x.shape[:-1], -1)
    return linear(x, decode(codes, scale, zero, x.dtype))


class QuantizedWeight(nn.Module):
    """A linear layer without bias, or a stack of such weights, in 8 or 4 bits."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, kind: str, shape: tuple[int, ...]) -> None:
        """`shape` is that of the weight, `[O, I]` or `[E, O, I]`. `OptionError` where it can't be packed."""
        super().__init__()
        *outer, inputs = shape
        if kind == "int4" and inputs % 2:
            raise OptionError(
                f"int4 packs pairs of inputs, and a weight is {list(shape)}; accepted: int8, fp8"
            )
        self.kind, self.inputs = kind, inputs
        groups = (inputs // group_size(inputs),) if kind == "int4" else ()
        packed = inputs // 2 if kind == "int4" else inputs
        self.register_buffer("codes", torch.zeros(*outer, packed, dtype=CODES[kind]))
        self.register_buffer("scale", torch.ones(*outer, *groups, dtype=SCALE_DTYPE))
        zero = torch.zeros(*outer, *groups, dtype=SCALE_DTYPE) if kind == "int4" else None
        self.register_buffer("zero", zero)

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """The buffers that stand for `weight`, by name; a stack is encoded weight by weight."""
        names = ("codes", "scale", "zero") if self.kind == "int4" else ("codes", "scale")
        encode = {"int8": encode_int8, "int4": encode_int4, "fp8": encode_fp8}[self.kind]
        if weight.ndim == 2:
            return dict(zip(names, encode(weight), strict=True))
        parts = zip(*map(encode, weight), strict=True)
        return {name: torch.stack(part) for name, part in zip(names, parts, strict=True)}

    def decode(self, dtype: torch.dtype) -> Tensor:
        """The whole weight, `[O, I]` or `[E, O, I]`."""
        return decode(self.codes, self.scale, self.zero, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Of a linear layer: `[..., I]` -> `[..., O]`."""
        return product(x, self.kind, self.codes, self.scale, self.zero)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Moves to another device, but keeps its dtypes: `model.to(dtype)` must not touch the scales."""
        kept = {name: buffer.dtype for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, dtype in kept.items():
            self._buffers[name] = cast(Tensor, self._buffers[name]).to(dtype)
        return self


class Stack:
    """A stack as the forms of experts.py take it: `stack[e]` and `stack[numbers]` are weights in `dtype`."""

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype) -> None:
        self._weight, self._dtype = weight, dtype

    def __len__(self) -> int:
        return len(self._weight.codes)

    def __getitem__(self, index: int | Tensor) -> Tensor:
        weight = self._weight
        zero = None if weight.zero is None else weight.zero[index]
        return decode(weight.codes[index], weight.scale[index], zero, self._dtype)

    def product(self, x: Tensor, index: int) -> Tensor:
        weight = self._weight
        zero = None if weight.zero is None else weight.zero[index]
        return product(x, weight.kind, weight.codes[index], weight.scale[index], zero)
