"""Describes a model of any family, of which no weights are loaded, given its folder."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..blocks.checkpoints.hub import ModelFolder
from ..blocks.checkpoints.key_mapping import KeyMap, check_counts
from ..blocks.checkpoints.quantize import keep_no_float32
from ..blocks.model.context import DecoderConfig
from ..blocks.placement.memory_estimate import Workload
from .pipelines import TEXT, family_of


@dataclass(frozen=True)
class ModelDescription:
    """A model's architecture, with no weights loaded."""

    family: str
    model_type: str
    variant: str | None
    """Name of the released model with this architecture."""
    decoder: DecoderConfig
    parts: dict[str, str]
    """Labels of the model's parts and patterns of their parameters' names."""
    workloads: list[Workload]
    """What the model is used for, each with the memory that it takes."""
    network: torch.nn.Module
    """The model on the meta device."""
    key_map: Callable[[Any], KeyMap]
    """From the tensor names in the files to the mapping of those names onto parameters."""
    keep_float32: Callable[[str], bool]
    """Whether the named parameter stays float32 whatever the dtype."""
    adapter_key_maps: Sequence[KeyMap]
    """The spellings of names in adapters."""
    experts: str | None = None
    """Label of the part that holds the routed experts."""


def describe(folder: ModelFolder, names: Iterable[str]) -> ModelDescription:
    """The architecture that the folder's `config.json` states. Raises `ConfigError`, also if it has
    more layers than the tensors with these `names`."""
    describers = {"Janus": _describe_janus, "DeepSeek-VL2": _describe_vl2, TEXT: _describe_text}
    return describers[family_of(folder)](folder, names)


def _describe_janus(folder: ModelFolder, names: Iterable[str]) -> ModelDescription:
    from ..janus import variants
    from ..janus.config import parse_config
    from ..janus.model import JanusModel
    from ..janus.pipeline import JanusPipeline
    from ..janus.weight_names import pick_key_map

    config, model_type = parse_config(folder.config)
    check_counts(names, config.counts, folder.config.where)
    with torch.device("meta"):
        network = JanusModel(config)
    return ModelDescription(
        family="Janus",
        model_type=model_type,
        variant=variants.variant(config, folder.path),
        decoder=config.decoder,
        parts=variants.PARTS,
        workloads=variants.workloads(config),
        network=network,
        key_map=lambda names: pick_key_map(names, model_type, config.tied),
        keep_float32=keep_no_float32,
        adapter_key_maps=JanusPipeline.adapter_key_maps,
    )


def _describe_vl2(folder: ModelFolder, names: Iterable[str]) -> ModelDescription:
    from ..vl2 import variants
    from ..vl2.config import MODEL_TYPE, parse_config
    from ..vl2.model import VL2Model
    from ..vl2.pipeline import VL2Pipeline
    from ..vl2.weight_names import keep_float32, key_map

    config = parse_config(folder.config)
    check_counts(names, config.counts, folder.config.where)
    with torch.device("meta"):
        network = VL2Model(config)
    return ModelDescription(
        family="DeepSeek-VL2",
        model_type=MODEL_TYPE,
        variant=variants.variant(config),
        decoder=config.decoder,
        parts=variants.PARTS,
        workloads=variants.workloads(config),
        network=network,
        key_map=lambda names: key_map,
        keep_float32=keep_float32,
        adapter_key_maps=VL2Pipeline.adapter_key_maps,
        experts=variants.EXPERTS,
    )


def _describe_text(folder: ModelFolder, names: Iterable[str]) -> ModelDescription:
    from ..text import variants
    from ..text.config import parse_config
    from ..text.model import TextModel
    from ..text.pipeline import TextPipeline
    from ..text.weight_names import keep_float32, pick_key_map

    names = list(names)
    config = parse_config(folder.config, names)
    check_counts(names, config.counts, folder.config.where)
    with torch.device("meta"):
        network = TextModel(config)
    return ModelDescription(
        family=TEXT,
        model_type=config.model_type,
        variant=variants.variant(config),
        decoder=config.decoder,
        parts=variants.PARTS,
        workloads=variants.workloads(config),
        network=network,
        key_map=lambda names: pick_key_map(config.decoder.num_layers, config.tied),
        keep_float32=keep_float32,
        adapter_key_maps=TextPipeline.adapter_key_maps,
        experts=variants.EXPERTS,
    )
