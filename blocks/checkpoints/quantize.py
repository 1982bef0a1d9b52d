"""Which weights of a model are quantized, on loading or in a stored checkpoint.

The decoder's linear layers and stacked experts are quantized. Embeddings, norms, routers, heads, SigLIP and
its projector, and the VQ model keep their precision. So does latent attention's `kv_b_proj` (3% of the
weights that a token uses), whose weight the absorbed form reads directly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError, OptionError
from ..foreign_files import OUR_METHOD, has_fp8_blocks
from ..kernels.codec import CODE_DTYPES, FP8_BLOCKS, GROUP_SIZE, KINDS
from ..model.decoder import Decoder
from ..model.moe import Experts
from ..model.quantized_weight import QuantizedWeight
from .hub import ModelFolder
from .key_mapping import KeyMap, ParameterSlice, saved_tensors

CONFIG_KEY = "quantization_config"
NOT_QUANTIZED = ("kv_b_proj",)
"""Layers whose weight is read directly."""


@dataclass(frozen=True)
class Quantization:
    """How a model's weights are quantized: in the folder already (`stored`), or on loading."""

    kind: str
    stored: bool


def check_kind(kind: object) -> str | None:
    """The `quantize` option, checked. Raises `OptionError` for an unknown kind."""
    if kind is not None and kind not in KINDS:
        raise OptionError(f"quantize is {kind!r}; accepted: {', '.join(KINDS)}, or None for none")
    return kind  # type: ignore[return-value]


def check_device(kind: str | None, device: torch.device) -> None:
    """Raise `OptionError` if torch has no tensors of this kind's codes on the device."""
    if kind is None or device.type in ("cpu", "cuda"):
        return
    try:
        torch.zeros(1, dtype=CODE_DTYPES[kind], device=device)
    except (TypeError, RuntimeError, AssertionError) as error:
        others = ", ".join(other for other in KINDS if other != kind)
        raise OptionError(f"{kind} weights can't be on {device} ({error}); accepted: {others}") from error


def quantization_config(kind: str) -> dict[str, Any]:
    """The entry of a quantized folder's `config.json` under `CONFIG_KEY`."""
    grouped = {"group_size": GROUP_SIZE} if kind == "int4" else {}
    return {"quant_method": OUR_METHOD, "weights": kind, **grouped}


def stored_kind(folder: ModelFolder) -> str | None:
    """How the folder's weights are quantized according to its config; None if they are not, or are fp8 in
    DeepSeek's blocks, which are kept on request. Raises `ConfigError` for methods other than ours."""
    if folder.config.get(CONFIG_KEY) is None or has_fp8_blocks(folder.config):
        return None
    section = folder.config.section(CONFIG_KEY)
    section.expect("quant_method", OUR_METHOD)
    section.expect("group_size", GROUP_SIZE)
    kind = section.get("weights")
    if kind not in (*KINDS, FP8_BLOCKS):
        raise ConfigError(f"{section.where}.weights is {kind!r}; accepted: {', '.join(KINDS)}")
    return kind


def pick_quantization(folder: ModelFolder, quantize: str | None) -> Quantization | None:
    """How to load a folder, given the `quantize` option and the folder's config. Raises `OptionError` if they
    contradict each other."""
    requested, stored = check_kind(quantize), stored_kind(folder)
    if stored is None:
        return None if requested is None else Quantization(requested, stored=False)
    if requested not in (None, accepted := stored if stored in KINDS else None):
        raise OptionError(
            f"quantize is {requested!r}, but {folder.path} holds {stored} weights; accepted: {accepted!r}"
        )
    return Quantization(stored, stored=True)


def decoder_name(model: nn.Module) -> str:
    """The module name of the decoder in a model of either family."""
    return next(name for name, module in model.named_modules() if isinstance(module, Decoder))


def quantizable_weights(model: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The weights of a plain model to quantize: parameter name -> (name of the `QuantizedWeight` that
    replaces it, shape)."""
    weights: dict[str, tuple[str, tuple[int, ...]]] = {}
    prefix = f"{decoder_name(model)}.layers."
    for name, module in model.named_modules():
        if not name.startswith(prefix):
            continue
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in NOT_QUANTIZED:
            assert module.bias is None, f"{name} has a bias"
            weights[f"{name}.weight"] = (name, tuple(module.weight.shape))
        elif isinstance(module, Experts):
            for leaf, parameter in module.named_parameters():
                weights[f"{name}.{leaf}"] = (f"{name}.{leaf}", tuple(parameter.shape))
    return weights


def replace_with_quantized(model: nn.Module, kind: str) -> dict[str, QuantizedWeight]:
    """Replace the `quantizable_weights` by empty ones on meta; returns these by parameter name."""
    plain = quantizable_weights(model)
    with torch.device("meta"):
        weights = {param: QuantizedWeight(kind, shape) for param, (_, shape) in plain.items()}
    for param, (name, _) in plain.items():
        path, _, leaf = name.rpartition(".")
        parent = model.get_submodule(path)
        parent._parameters.pop(leaf, None)
        setattr(parent, leaf, weights[param])
    return weights


def quantized_dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """The dtypes of codes and scales, by name; they keep these whatever dtype the model is loaded in."""
    quantized = [name for name, module in model.named_modules() if isinstance(module, QuantizedWeight)]
    prefixes = tuple(f"{name}." for name in quantized)
    return {name: tensor.dtype for name, tensor in saved_tensors(model).items() if name.startswith(prefixes)}


def quantized_key_map(key_map: KeyMap, names: Mapping[str, object]) -> KeyMap:
    """The key map of a quantized folder: codes and scales are stored under their own `names`."""

    def find(name: str) -> ParameterSlice | tuple[ParameterSlice, ...] | None:
        return ParameterSlice(name) if name in names else key_map(name)

    return find


def keep_no_float32(name: str) -> bool:
    """The `keep_float32` of models whose parameters are all loaded in one dtype."""
    return False
