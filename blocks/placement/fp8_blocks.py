"""Weights in fp8 blocks, as DeepSeek-V3's checkpoints store them, that stay so when they are loaded."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from ..checkpoints.formats import TensorEntry
from ..checkpoints.hub import ModelFolder
from ..checkpoints.key_mapping import KeyMap, ParameterSlice
from ..checkpoints.quantize import Quantization, pick_quantization, quantizable_weights
from ..checkpoints.reader import SCALE, list_tensors
from ..foreign_files import has_fp8_blocks
from ..kernels.codec import FP8_BLOCKS
from .tensor_parallel import targets_of


def kind_in_memory(folder: ModelFolder, kind: str | None) -> str | None:
    """The kind of a folder's weights once they are quantized to `kind`: fp8 is that of the files if they are
    in blocks."""
    return FP8_BLOCKS if kind == "fp8" and has_fp8_blocks(folder.config) else kind


def quantized_tensors(
    model: nn.Module,
    folder: ModelFolder,
    quantize: str | None,
    entries: dict[str, TensorEntry] | None,
    key_map: KeyMap,
) -> tuple[dict[str, TensorEntry] | None, KeyMap, Quantization | None]:
    """The tensors of a folder (`entries`, if they are known), their key map and how they are quantized: with
    fp8 blocks as they are stored, if `quantize` asks for fp8 and all weights have them."""
    quantization = pick_quantization(folder, quantize)
    if kind_in_memory(folder, quantize) != FP8_BLOCKS:
        return entries, key_map, quantization
    entries = list_tensors(folder.path) if entries is None else entries
    return keep_blocks(model, entries, key_map) or (entries, key_map, quantization)


def keep_blocks(
    model: nn.Module, entries: Mapping[str, TensorEntry], key_map: KeyMap
) -> tuple[dict[str, TensorEntry], KeyMap, Quantization] | None:
    """What `load_weights` takes to keep the decoder's weights as they are stored: the tensors of a checkpoint
    with codes and scales apart, their key map, and the quantization. None if some of the weights are not in
    blocks.

    `model` is a plain one on meta. Codes have the names of their weights, scales those in the files.
    """
    weights, found = quantizable_weights(model), dict[str, TensorEntry]()
    targets: dict[str, tuple[ParameterSlice, ...]] = {}
    for name, entry in entries.items():
        found[name] = entry
        for target in targets_of(key_map, name):
            if target.param not in weights:
                continue
            if entry.scale is None or entry.dtype != torch.float8_e4m3fn:
                return None
            module, _ = weights[target.param]
            scale = entry.scale
            found[name] = replace(entry, scale=None)
            found[name + SCALE] = replace(scale, shape=entry.shape[:1] + scale.shape[1:], repeated=True)
            targets[name] = (replace(target, param=f"{module}.codes"),)
            targets[name + SCALE] = (replace(target, param=f"{module}.scale"),)

    def find(name: str) -> ParameterSlice | tuple[ParameterSlice, ...] | None:
        return targets.get(name) or key_map(name)

    return found, find, Quantization(FP8_BLOCKS, stored=True)
