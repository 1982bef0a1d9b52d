"""Loads and describes a model of either family, Janus or DeepSeek-VL2, given its name."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ..blocks.adapter_choice import AdapterChoice
from ..blocks.checkpoints.hub import EMBEDDED, EMBEDDED_FOLDER, ModelFolder, open_model
from ..blocks.checkpoints.key_mapping import KeyMap, check_counts
from ..blocks.checkpoints.quantize import keep_no_float32
from ..blocks.device import resolve_device
from ..blocks.engine.generate import scheduler_of
from ..blocks.errors import OptionError, ResourceError
from ..blocks.foreign_files import model_type_error
from ..blocks.model.context import DecoderConfig
from ..blocks.placement.memory_estimate import Workload
from .defaults import DEFAULT_MODEL
from .notes import note

if TYPE_CHECKING:
    from ..blocks.placement.auto_device_map import MaxMemory
    from ..blocks.placement.device_map import DeviceMap
    from ..janus.model import Parts
    from ..janus.pipeline import JanusPipeline
    from ..vl2.pipeline import VL2Pipeline

    Pipeline = JanusPipeline | VL2Pipeline

_FAMILIES = {"multi_modality": "Janus", "janus": "Janus", "deepseek_vl_v2": "DeepSeek-VL2"}
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def family_of(folder: ModelFolder) -> str:
    """`Janus` or `DeepSeek-VL2`, by the `model_type` in `config.json`. Raises `ConfigError` for any other."""
    config = folder.config
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise model_type_error(config, _FAMILIES)
    return _FAMILIES[model_type]


def label(folder: Path) -> str | None:
    """The note to show wherever an embedded model runs; None for any other model."""
    folder = Path(os.path.realpath(folder))
    if folder.name in EMBEDDED and folder.parent == EMBEDDED_FOLDER.resolve():
        return f"{folder.name}: embedded demonstration model, knows only coloured shapes"
    return None


def load_pipeline(
    model: str,
    device: str | None = None,
    dtype: str | None = None,
    *,
    quantize: str | None = None,
    device_map: "DeviceMap | None" = None,
    max_memory: "MaxMemory | None" = None,
    must_paint: bool = False,
    parts: "Parts" = "all",
    eager: bool = False,
    adapters: Sequence[AdapterChoice] = (),
) -> "Pipeline":
    """Load a model with the pipeline of its family; the label of an embedded model is printed to stderr.

    `must_paint` refuses models that can't generate images. `parts` says which parts of a Janus model are
    needed; DeepSeek-VL2 is always loaded whole. `eager` turns CUDA graphs off; `adapters` are added. Raises
    `BifronsError`; weights that exceed the free memory of the device, or of those in the `device_map`, are
    refused before loading.
    """
    folder = open_model(model)
    family = family_of(folder)
    if must_paint and family != "Janus":
        raise OptionError(
            f"{model} is a {family} model, which reads pictures but neither paints nor has codes of them; "
            f"accepted here: a Janus model, such as {DEFAULT_MODEL} or deepseek-ai/Janus-Pro-1B"
        )
    if text := label(folder.path):
        note(text)
    if resolve_device(device).type == "meta":
        raise OptionError("device 'meta' holds no numbers; accepted: cpu, cuda, cuda:N, mps")
    options: dict[str, Any] = {
        "quantize": quantize,
        "device_map": device_map,
        "max_memory": max_memory,
        "capture": False if eager else None,
    }
    with explain_out_of_memory(f"loading {model}", lambda: f"`bifrons info {model}` shows what it needs"):
        if family == "Janus":
            from ..janus.pipeline import JanusPipeline

            pipe: Pipeline = JanusPipeline.from_pretrained(folder, device, dtype, parts=parts, **options)
        else:
            from ..vl2.pipeline import VL2Pipeline

            pipe = VL2Pipeline.from_pretrained(folder, device, dtype, **options)
        for adapter in adapters:
            pipe.load_adapter(adapter.folder, adapter.name, adapter.scale)
    return pipe


def as_janus(pipe: "Pipeline") -> "JanusPipeline | None":
    """The pipeline if it is one of a Janus model, which generates images."""
    from ..janus.pipeline import JanusPipeline

    return pipe if isinstance(pipe, JanusPipeline) else None


class StepMeter:
    """Counts the steps of a pipeline's requests, from now on."""

    def __init__(self, pipe: "Pipeline") -> None:
        self._scheduler = scheduler_of(pipe.model.decoder)
        self._passes, self._tokens = self._scheduler.passes, self._scheduler.tokens

    @property
    def steps(self) -> int:
        """The sum of the steps of each request."""
        return self._scheduler.passes - self._passes

    @property
    def tokens_per_step(self) -> float:
        """The tokens that a request gets from a step, on average; 0 before the first."""
        return (self._scheduler.tokens - self._tokens) / max(1, self.steps)


def chat_workload(pipe: "Pipeline") -> Workload:
    """The memory that a conversation about one picture takes."""
    from ..janus.variants import chat_workload as of_janus
    from ..vl2.variants import workloads as of_vl2

    janus = as_janus(pipe)
    return (
        of_vl2(cast("VL2Pipeline", pipe).model.config)[0] if janus is None else of_janus(janus.model.config)
    )


@contextmanager
def explain_out_of_memory(activity: str, advice: Callable[[], str]) -> Iterator[None]:
    """Turn a failed allocation into a `ResourceError`: "out of memory while {activity}; {advice}".

    Torch raises several kinds of exceptions for it. `advice` is called only when it is needed.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(f"out of memory while {activity}; {advice()}") from error
    except RuntimeError as error:
        # The CPU's allocator and MPS raise a plain RuntimeError.
        message = str(error).lower()
        if not any(text in message for text in _OUT_OF_MEMORY):
            raise
        raise ResourceError(f"out of memory while {activity}; {advice()}") from error


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
    return _describe_janus(folder, names) if family_of(folder) == "Janus" else _describe_vl2(folder, names)


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
