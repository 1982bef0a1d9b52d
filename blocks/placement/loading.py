"""Loading a model: choose where its weights go, read them, and make it compute there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from ..checkpoints.formats import TensorEntry
from ..checkpoints.hub import ModelFolder
from ..checkpoints.key_mapping import KeyMap
from ..checkpoints.loader import load_weights
from ..checkpoints.quantize import decoder_name, pick_quantization
from ..model.decoder import Decoder
from .auto_device_map import MaxMemory
from .device_map import DeviceMap, choose_placement


@dataclass(frozen=True)
class LoadOptions:
    """Where and how weights are loaded; the pipelines' `from_pretrained` explains each."""

    device: str | torch.device | None = None
    dtype: str | torch.dtype | None = None
    quantize: str | None = None
    device_map: DeviceMap | None = None
    max_memory: MaxMemory | None = None
    capture: bool | None = None
    progress: bool = True


def load_model(
    model: nn.Module,
    folder: ModelFolder,
    key_map: KeyMap,
    options: LoadOptions,
    *,
    keep_float32: Callable[[str], bool] = lambda name: False,
    entries: dict[str, TensorEntry] | None = None,
) -> None:
    """Fill `model`, a plain one built on meta, from `folder` and make it ready to compute.

    `keep_float32` and `entries` are those of `load_weights`. Raises `OptionError` before anything is loaded
    for options that are not accepted and for weights that exceed the free memory, and `CheckpointError`.
    """
    quantization = pick_quantization(folder, options.quantize)
    placement, dtype = choose_placement(
        folder.name,
        model,
        device=options.device,
        dtype=options.dtype,
        capture=options.capture,
        kind=None if quantization is None else quantization.kind,
        keep_float32=keep_float32,
        device_map=options.device_map,
        max_memory=options.max_memory,
    )
    load_weights(
        model,
        folder.path,
        key_map,
        device=placement.device_of,
        dtype=dtype,
        progress=options.progress,
        keep_float32=keep_float32,
        entries=entries,
        quantization=quantization,
    )
    if placement.uses_several_devices:
        from .offload import attach_hooks  # needs accelerate

        attach_hooks(model, placement)
    decoder = cast(Decoder, model.get_submodule(decoder_name(model)))
    decoder.capture = options.capture
    model.eval()
