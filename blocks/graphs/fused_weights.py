"""Fused weights: layers with the same input (q, k and v; gate and up) share one storage, so that one matrix
product computes them all.

O outputs, I inputs. The layers' parameters and buffers become views of that storage; names and values stay.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn

from ..kernels import dispatch
from ..kernels.codec import WeightTensors
from ..model.decoder import Attention, Decoder
from ..model.layers import FeedForward, Linear
from ..model.mla import LatentAttention
from ..model.quantized_weight import QuantizedWeight


def _linear_weight(layer: nn.Module) -> WeightTensors | None:
    """The weight of a linear layer without bias, plain or quantized; None for any other module."""
    if type(layer) is Linear and layer.bias is None:
        return WeightTensors(layer.weight)
    if isinstance(layer, QuantizedWeight) and layer.codes.ndim == 2:
        return layer.tensors
    return None


def _linear_weights(layers: Sequence[nn.Module]) -> list[WeightTensors] | None:
    """The weights of all layers if all are linear and of one kind, else None."""
    weights = [weight for layer in layers if (weight := _linear_weight(layer)) is not None]
    fusible = len(weights) == len(layers) and len({weight.kind for weight in weights}) == 1
    return weights if fusible else None


def _tensors_by_field(weights: Sequence[WeightTensors]) -> dict[str, list[Tensor]]:
    """The tensors of all weights (`codes`, and `scale` and `zero` where the kind has them), by field."""
    return {field: [weight.named[field] for weight in weights] for field in weights[0].named}


def _adjacent_view(parts: Sequence[Tensor]) -> Tensor | None:
    """Tensors `[O_i, ...]` as one view without a copy; None if they are not adjacent in memory."""
    first = parts[0]
    end, storage = first.data_ptr(), first.untyped_storage().data_ptr()
    for part in parts:
        adjacent = part.data_ptr() == end and part.untyped_storage().data_ptr() == storage
        if not adjacent or not part.is_contiguous() or part.dtype != first.dtype:
            return None
        end += part.numel() * part.itemsize
    return first.detach().as_strided((sum(len(part) for part in parts), *first.shape[1:]), first.stride())


def fused_weight(*layers: nn.Module) -> WeightTensors | None:
    """The layers' weights as one, if `fuse_weights` made them adjacent and kernels can read their kind."""
    weights = _linear_weights(layers)
    if weights is None:
        return None
    codes = weights[0].codes
    if codes.dtype == torch.float8_e4m3fn and not dispatch.supports_float8(codes.device):
        return None
    fused: dict[str, Tensor] = {}
    for field, tensors in _tensors_by_field(weights).items():
        if (view := _adjacent_view(tensors)) is None:
            return None
        fused[field] = view
    return WeightTensors(**fused, kind=weights[0].kind)


def fused_bias(layer: Attention) -> Tensor | None:
    """The biases of queries, keys and values as one, `[O]`; None without."""
    if layer.q_bias is None:
        return None
    biases = cast(list[Tensor], [layer.q_bias, layer.k_bias, layer.v_bias])
    view = _adjacent_view(biases)
    return torch.cat(biases) if view is None else view


def _modules(decoder: Decoder) -> Iterator[nn.Module]:
    return chain.from_iterable(part.modules() for part in (decoder, *decoder.ahead))


def _layers_to_fuse(decoder: Decoder) -> Iterator[tuple[nn.Module, ...]]:
    """Groups of layers that have the same input."""
    for module in _modules(decoder):
        if isinstance(module, Attention):
            yield module.q_proj, module.k_proj, module.v_proj
        elif isinstance(module, LatentAttention):
            yield module.first_proj, module.kv_a_proj_with_mqa
        elif isinstance(module, FeedForward):
            yield module.gate_proj, module.up_proj


def _assign(layer: nn.Module, field: str, piece: Tensor) -> None:
    """Replace a layer's weight, or one buffer of a quantized layer."""
    if isinstance(layer, QuantizedWeight):
        setattr(layer, field, piece)  # assigning to `.data` of a view would keep the old storage alive
    else:
        cast(Linear, layer).weight.data = piece


@torch.no_grad()
def fuse_weights(decoder: Decoder) -> None:
    """Make the weights of each group of layers adjacent in memory, one group after the other.

    So are the biases of queries, keys and values. Weights that require gradients are left alone.
    """
    for module in _modules(decoder):
        if isinstance(module, Attention) and module.q_bias is not None and not module.q_bias.requires_grad:
            biases = cast(list[Tensor], [module.q_bias, module.k_bias, module.v_bias])
            if _adjacent_view(biases) is None:
                pieces = torch.cat([bias.data for bias in biases]).split([len(bias) for bias in biases])
                for bias, piece in zip(biases, pieces, strict=True):
                    bias.data = piece
    for layers in _layers_to_fuse(decoder):
        weights = _linear_weights(layers)
        if weights is None or any(weight.codes.requires_grad for weight in weights):
            continue
        for field, tensors in _tensors_by_field(weights).items():
            alike = len({(tensor.dtype, tensor.device, tensor.shape[1:]) for tensor in tensors}) == 1
            if alike and _adjacent_view(tensors) is None:
                pieces = torch.cat([tensor.data for tensor in tensors]).split([len(t) for t in tensors])
                for layer, piece in zip(layers, pieces, strict=True):
                    _assign(layer, field, piece)
