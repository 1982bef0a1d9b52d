"""From a model's name to the family that runs it: the one place of the applications that knows both."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..blocks.checkpoints.hub import EMBEDDED, EMBEDDED_FOLDER, ModelFolder, open_model
from ..blocks.checkpoints.key_mapping import KeyMap
from ..blocks.device import resolve_device
from ..blocks.errors import ConfigError, OptionError
from ..blocks.model.context import DecoderConfig
from ..blocks.placement.memory_estimate import Workload
from .defaults import DEFAULT_MODEL

if TYPE_CHECKING:
    from ..blocks.placement.auto_device_map import MaxMemory
    from ..blocks.placement.device_map import DeviceMap
    from ..janus.model import Parts
    from ..janus.pipeline import JanusPipeline
    from ..vl2.pipeline import VL2Pipeline

    Pipeline = JanusPipeline | VL2Pipeline

_FAMILIES = {"multi_modality": "Janus", "janus": "Janus", "deepseek_vl_v2": "DeepSeek-VL2"}


def family_of(folder: ModelFolder) -> str:
    """`Janus` or `DeepSeek-VL2`, by the `model_type` of its `config.json`; a `ConfigError` otherwise."""
    config = folder.config
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise ConfigError(f"{config.where}: model_type is {model_type!r}; accepted: {', '.join(_FAMILIES)}")
    return _FAMILIES[model_type]


def label(folder: Path) -> str | None:
    """What an embedded model is, to be shown wherever it runs; None for any other."""
    folder = folder.resolve()
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
    paints: bool = False,
    parts: "Parts" = "all",
    eager: bool = False,
) -> "Pipeline":
    """The pipeline of the model's family, loaded; tells an embedded model's label on stderr.

    With `paints`, a model that can't paint is an `OptionError`. So is one whose weights exceed the free
    memory of the device, or of those of the `device_map`, before anything is loaded. `parts` is what of a
    Janus model the work takes. With `eager`, no steps are captured.
    """
    folder = open_model(model)
    family = family_of(folder)
    if paints and family != "Janus":
        raise OptionError(
            f"{model} is a {family} model, which reads pictures but neither paints nor has codes of them; "
            f"accepted here: a Janus model, such as {DEFAULT_MODEL} or deepseek-ai/Janus-Pro-1B"
        )
    if note := label(folder.path):
        print(note, file=sys.stderr)
    if resolve_device(device).type == "meta":
        raise OptionError("device 'meta' holds no numbers; accepted: cpu, cuda, cuda:N, mps")
    how: dict[str, Any] = {"quantize": quantize, "device_map": device_map, "max_memory": max_memory}
    how["capture"] = False if eager else None
    with explain_memory(f"loading {model}", lambda: f"`bifrons info {model}` tells what it needs"):
        if family == "Janus":
            from ..janus.pipeline import JanusPipeline

            return JanusPipeline.from_pretrained(folder, device, dtype, parts=parts, **how)
        from ..vl2.pipeline import VL2Pipeline

        return VL2Pipeline.from_pretrained(folder, device, dtype, **how)


@contextmanager
def explain_memory(doing: str, advice: Callable[[], str]) -> Iterator[None]:
    """Turn a failed allocation, which torch tells in several ways, into an `OptionError` with advice."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OptionError(f"out of memory while {doing}; {advice()}") from error
    except RuntimeError as error:
        # The CPU's allocator and MPS raise a plain RuntimeError.
        words = str(error).lower()
        if not any(sign in words for sign in ("out of memory", "can't allocate memory", "not enough memory")):
            raise
        raise OptionError(f"out of memory while {doing}; {advice()}") from error


@dataclass(frozen=True)
class Described:
    """A model's architecture, with nothing loaded. `network` is on meta; `key_map` takes the files' names,
    `works` are the kinds of work that it does, `experts` is the label of the part with routed experts."""

    family: str
    model_type: str
    variant: str | None
    decoder: DecoderConfig
    parts: dict[str, str]
    workloads: list[Workload]
    network: torch.nn.Module
    key_map: Callable[[Any], KeyMap]
    keep_float32: Callable[[str], bool]
    experts: str | None = None


def describe(folder: ModelFolder) -> Described:
    """The architecture that the folder's `config.json` states; a `ConfigError` says what is off."""
    return _describe_janus(folder) if family_of(folder) == "Janus" else _describe_vl2(folder)


def _describe_janus(folder: ModelFolder) -> Described:
    from ..janus import variants
    from ..janus.config import parse_config
    from ..janus.model import JanusModel
    from ..janus.weight_names import pick_key_map

    config, model_type = parse_config(folder.config)
    with torch.device("meta"):
        network = JanusModel(config)
    return Described(
        family="Janus",
        model_type=model_type,
        variant=variants.variant(config, folder.path),
        decoder=config.decoder,
        parts=variants.PARTS,
        workloads=variants.workloads(config),
        network=network,
        key_map=lambda names: pick_key_map(names, model_type, config.tied),
        keep_float32=lambda name: False,
    )


def _describe_vl2(folder: ModelFolder) -> Described:
    from ..vl2 import variants
    from ..vl2.config import MODEL_TYPE, parse_config
    from ..vl2.model import VL2Model
    from ..vl2.weight_names import keep_float32, key_map

    config = parse_config(folder.config)
    with torch.device("meta"):
        network = VL2Model(config)
    return Described(
        family="DeepSeek-VL2",
        model_type=MODEL_TYPE,
        variant=variants.variant(config),
        decoder=config.decoder,
        parts=variants.PARTS,
        workloads=variants.workloads(config),
        network=network,
        key_map=lambda names: key_map,
        keep_float32=keep_float32,
        experts=variants.EXPERTS,
    )
