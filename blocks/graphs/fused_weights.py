"""Weights of layers that are multiplied with one input, side by side in one storage: one product of them all.

O outputs, I inputs. The parameters and buffers of the layers become views; names and values stay.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..kernels import dispatch
from ..kernels.codec import WeightTensors
from ..model.decoder import Attention, Decoder
from ..model.layers import FeedForward, Linear
from ..model.mla import LatentAttention
from ..model.quantized_weight import QuantizedWeight


def weight_of(layer: nn.Module) -> WeightTensors | None:
    """The weight of a linear layer without bias, plain or quantized; None for anything else."""
    if type(layer) is Linear and layer.bias is None:
        return WeightTensors(layer.weight)
    if isinstance(layer, QuantizedWeight) and layer.codes.ndim == 2:
        return layer.tensors
    return None


def _weights(layers: Sequence[nn.Module]) -> list[WeightTensors] | None:
    """The weights of all layers, if they are of one kind."""
    found = [weight for layer in layers if (weight := weight_of(layer)) is not None]
    return found if len(found) == len(layers) and len({weight.kind for weight in found}) == 1 else None


def _parts(weights: Sequence[WeightTensors]) -> dict[str, list[Tensor]]:
    """The codes of all weights, their scales, and their zeros, as far as they have some, by field."""
    fields = ("codes", "scale", "zero")
    columns = {field: [getattr(weight, field) for weight in weights] for field in fields}
    return {field: column for field, column in columns.items() if column[0] is not None}


def _whole(parts: Sequence[Tensor]) -> Tensor | None:
    """Tensors `[O_i, ...]` as one, without a copy; None where they do not lie side by side."""
    first = parts[0]
    end, storage = first.data_ptr(), first.untyped_storage().data_ptr()
    for part in parts:
        together = part.data_ptr() == end and part.untyped_storage().data_ptr() == storage
        if not together or not part.is_contiguous() or part.dtype != first.dtype:
            return None
        end += part.numel() * part.itemsize
    return first.detach().as_strided((sum(len(part) for part in parts), *first.shape[1:]), first.stride())


def joined_weight(*layers: nn.Module) -> WeightTensors | None:
    """The weights of layers as one, if they lie side by side and kernels there read their kind."""
    weights = _weights(layers)
    if weights is None or (
        weights[0].kind == "fp8" and not dispatch.supports_float8(weights[0].codes.device)
    ):
        return None
    wholes: dict[str, Tensor] = {}
    for field, tensors in _parts(weights).items():
        if (whole := _whole(tensors)) is None:
            return None
        wholes[field] = whole
    return WeightTensors(**wholes, kind=weights[0].kind)


def _groups(decoder: Decoder) -> Iterator[tuple[nn.Module, ...]]:
    """Layers that are multiplied with one input."""
    for module in decoder.modules():
        if isinstance(module, Attention):
            yield module.q_proj, module.k_proj, module.v_proj
        elif isinstance(module, LatentAttention):
            yield module.first_proj, module.kv_a_proj_with_mqa
        elif isinstance(module, FeedForward):
            yield module.gate_proj, module.up_proj


def _put(layer: nn.Module, field: str, piece: Tensor) -> None:
    """Let a layer's weight, or a part of a quantized one, be this tensor."""
    if isinstance(layer, QuantizedWeight):
        setattr(layer, field, piece)  # not its data: a view would keep the memory that it was a view of
    else:
        cast(Linear, layer).weight.data = piece


@torch.no_grad()
def join_weights(decoder: Decoder) -> None:
    """Lays the weights of each group side by side, group by group. Weights that are being trained are left
    where they are."""
    for layers in _groups(decoder):
        weights = _weights(layers)
        if weights is None or any(weight.codes.requires_grad for weight in weights):
            continue
        for field, tensors in _parts(weights).items():
            alike = len({(tensor.dtype, tensor.device, tensor.shape[1:]) for tensor in tensors}) == 1
            if alike and _whole(tensors) is None:
                pieces = torch.cat([tensor.data for tensor in tensors]).split([len(t) for t in tensors])
                for layer, piece in zip(layers, pieces, strict=True):
                    _put(layer, field, piece)
