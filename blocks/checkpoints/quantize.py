"""Which weights of a model are quantized, while loading or in a folder, and what that takes.

The decoder's linear layers and its stacked experts are; everything else keeps its precision: embeddings,
norms, the gates of experts, heads, SigLIP and its projector, the VQ model. So does latent attention's
`kv_b_proj`, whose weight the absorbed form reads: 3% of what a token goes through.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError, OptionError
from ..kernels.batch_invariant import Linear
from ..kernels.codec import CODE_DTYPES, GROUP_SIZE, KINDS, SCALE_DTYPE, group_size
from ..model.decoder import Decoder
from ..model.moe import Experts
from ..model.quantized_linear import QuantizedWeight
from .hub import ModelFolder
from .key_mapping import KeyMap, ParameterSlice, saved_tensors

CONFIG_KEY = "quantization_config"
_METHOD = "bifrons"
_KEPT = ("kv_b_proj",)


@dataclass(frozen=True)
class Quantization:
    """How a model's weights are kept. `stored`: the folder holds them so; else they become so on loading."""

    kind: str
    stored: bool


def check_kind(kind: object) -> str | None:
    if kind is not None and kind not in KINDS:
        raise OptionError(f"quantize is {kind!r}; accepted: {', '.join(KINDS)}, or None for none")
    return kind  # type: ignore[return-value]


def check_device(kind: str | None, device: torch.device) -> None:
    """An `OptionError` where torch has no numbers like the codes of `kind` on a device."""
    if kind is None or device.type in ("cpu", "cuda"):
        return
    try:
        torch.zeros(1, dtype=CODE_DTYPES[kind], device=device)
    except (TypeError, RuntimeError, AssertionError) as error:
        others = ", ".join(other for other in KINDS if other != kind)
        raise OptionError(f"{kind} weights can't be on {device} ({error}); accepted: {others}") from error


def quantization_config(kind: str) -> dict[str, Any]:
    """What `config.json` states of a quantized folder under `CONFIG_KEY`."""
    return {"quant_method": _METHOD, "weights": kind} | ({"group_size": GROUP_SIZE} if kind == "int4" else {})


def stored_kind(folder: ModelFolder) -> str | None:
    """How the folder's weights are quantized, by its config; None if they are not. A `ConfigError` for ways
    that are not ours."""
    if folder.config.get(CONFIG_KEY) is None:
        return None
    section = folder.config.section(CONFIG_KEY)
    section.expect("quant_method", _METHOD)
    section.expect("group_size", GROUP_SIZE)
    kind = section.get("weights")
    if kind not in KINDS:
        raise ConfigError(f"{section.where}.weights is {kind!r}; accepted: {', '.join(KINDS)}")
    return kind


def pick_quantization(folder: ModelFolder, quantize: str | None) -> Quantization | None:
    """What to load a folder with, from what is asked for and what it holds."""
    asked, stored = check_kind(quantize), stored_kind(folder)
    if stored is None:
        return None if asked is None else Quantization(asked, stored=False)
    if asked not in (None, stored):
        raise OptionError(
            f"quantize is {asked!r}, but {folder.path} holds {stored} weights; accepted: {stored!r}"
        )
    return Quantization(stored, stored=True)


def decoder_name(model: nn.Module) -> str:
    """What the decoder is called in a model of either family."""
    return next(name for name, module in model.named_modules() if isinstance(module, Decoder))


def quantizable_weights(model: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What is to be quantized, of a model that is not yet: parameter -> (the `QuantizedWeight` that takes its
    place, its shape)."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    inside = f"{decoder_name(model)}.layers."
    for name, module in model.named_modules():
        if not name.startswith(inside):
            continue
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in _KEPT:
            assert module.bias is None, f"{name} has a bias"
            found[f"{name}.weight"] = (name, tuple(module.weight.shape))
        elif isinstance(module, Experts):
            for leaf, parameter in module.named_parameters():
                found[f"{name}.{leaf}"] = (f"{name}.{leaf}", tuple(parameter.shape))
    return found


def replace_with_quantized(model: nn.Module, kind: str) -> dict[str, QuantizedWeight]:
    """Replaces the `quantizable_weights` by empty quantized ones on meta; returns those by parameter name."""
    found = quantizable_weights(model)
    with torch.device("meta"):
        weights = {param: QuantizedWeight(kind, shape) for param, (_, shape) in found.items()}
    for param, (name, _) in found.items():
        path, _, leaf = name.rpartition(".")
        parent = model.get_submodule(path)
        if leaf in parent._parameters:
            del parent._parameters[leaf]
        setattr(parent, leaf, weights[param])
    return weights


def quantize_model(model: nn.Module, kind: str) -> nn.Module:
    """Quantizes a loaded model in place, layer by layer, where it stands."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.unpack()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for param, weight in replace_with_quantized(model, kind).items():
        for leaf, tensor in weight.encode(parameters.pop(param)).items():
            setattr(weight, leaf, tensor)
    return model


def quantized_dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """Tensors of a model that keep their dtype whatever it is loaded in: codes and scales."""
    places = [f"{name}." for name, module in model.named_modules() if isinstance(module, QuantizedWeight)]
    tensors = saved_tensors(model).items()
    return {name: tensor.dtype for name, tensor in tensors if name.startswith(tuple(places))}


def quantized_key_map(key_map: KeyMap, names: Mapping[str, object]) -> KeyMap:
    """The key map of a quantized folder: codes and scales are stored under their own names `names`."""

    def find(name: str) -> ParameterSlice | tuple[ParameterSlice, ...] | None:
        return ParameterSlice(name) if name in names else key_map(name)

    return find


def quantized_bytes(shape: tuple[int, ...], kind: str) -> int:
    """Memory of a quantized weight."""
    count, inputs = prod(shape), shape[-1]
    if kind == "int4":
        return count // 2 + count // group_size(inputs) * 2 * SCALE_DTYPE.itemsize
    return count * CODE_DTYPES[kind].itemsize + count // inputs * SCALE_DTYPE.itemsize


def tensor_bytes(
    model: nn.Module, dtype: torch.dtype, kind: str | None, keep_float32: Callable[[str], bool]
) -> dict[str, int]:
    """Memory of each of a plain model's weights when loaded in `dtype` and quantized so."""
    quantized = {} if kind is None else quantizable_weights(model)
    found = {}
    for name, tensor in saved_tensors(model).items():
        if name in quantized and kind is not None:
            found[name] = quantized_bytes(quantized[name][1], kind)
        else:
            found[name] = tensor.numel() * (torch.float32 if keep_float32(name) else dtype).itemsize
    return found


def model_bytes(
    model: nn.Module, dtype: torch.dtype, kind: str | None, keep_float32: Callable[[str], bool]
) -> int:
    """Memory of all of them."""
    return sum(tensor_bytes(model, dtype, kind, keep_float32).values())
