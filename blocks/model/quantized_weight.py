"""Linear layers and stacked experts with weights in 8 or 4 bits (`kernels/codec.py`); activations are not.

O outputs, I inputs, E experts.
"""

from typing import cast

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..kernels.codec import CODE_DTYPES, WeightTensors, decode, encode, scale_dtype, scales_per_output
from ..kernels.quantized_linear import quantized_linear


class QuantizedWeight(nn.Module):
    """A linear layer without bias, or a stack of such weights, in 8 or 4 bits."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, kind: str, shape: tuple[int, ...]) -> None:
        """`shape` is the weight's, `[O, I]` or `[E, O, I]`. Raises `OptionError` if int4 can't pack it."""
        super().__init__()
        *outer, inputs = shape
        if kind == "int4" and inputs % 2:
            raise OptionError(
                f"int4 packs pairs of inputs, and a weight is {list(shape)}; accepted: int8, fp8"
            )
        self.kind = kind
        count, dtype = scales_per_output(kind, inputs), scale_dtype(kind)
        groups = () if count is None else (count,)
        packed = inputs // 2 if kind == "int4" else inputs
        self.register_buffer("codes", torch.zeros(*outer, packed, dtype=CODE_DTYPES[kind]))
        self.register_buffer("scale", torch.ones(*outer, *groups, dtype=dtype))
        zero = torch.zeros(*outer, *groups, dtype=dtype) if kind == "int4" else None
        self.register_buffer("zero", zero)

    @property
    def tensors(self) -> WeightTensors:
        """The buffers, in the form that kernels take."""
        return WeightTensors(self.codes, self.scale, self.zero, self.kind)

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """`weight` quantized: the buffers by name."""
        return encode(weight, self.kind).named

    def decode(self, dtype: torch.dtype) -> Tensor:
        """The dequantized weight, `[O, I]` or `[E, O, I]`."""
        return decode(self.tensors, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The linear layer: `[..., I]` -> `[..., O]`."""
        return quantized_linear(x, self.tensors)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Applies device moves but no dtype casts: `model.to(dtype)` must not touch the scales."""
        dtypes = {name: buffer.dtype for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, dtype in dtypes.items():
            self._buffers[name] = cast(Tensor, self._buffers[name]).to(dtype)
        return self
