"""Loads a model of any family, Janus, DeepSeek-VL2 or a text model, given its name."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..blocks.adapter_choice import AdapterChoice
from ..blocks.checkpoints.hub import EMBEDDED, EMBEDDED_FOLDER, ModelFolder, open_model
from ..blocks.device import is_out_of_memory, resolve_device
from ..blocks.engine.generate import scheduler_of
from ..blocks.errors import OptionError, ResourceError
from ..blocks.foreign_files import model_type_error
from ..blocks.placement.memory_estimate import Workload
from ..blocks.vocabulary import read_vocabulary
from .defaults import DEFAULT_MODEL
from .notes import note

if TYPE_CHECKING:
    from ..blocks.placement.auto_device_map import MaxMemory
    from ..blocks.placement.device_map import DeviceMap
    from ..janus.model import Parts
    from ..janus.pipeline import JanusPipeline
    from ..text.pipeline import TextPipeline
    from ..vl2.pipeline import VL2Pipeline

    Pipeline = JanusPipeline | VL2Pipeline | TextPipeline

TEXT = "text"
"""The family of models that read no pictures."""
_FAMILIES = {"multi_modality": "Janus", "janus": "Janus", "deepseek_vl_v2": "DeepSeek-VL2"} | dict.fromkeys(
    ("qwen2", "llama", "deepseek_v2", "deepseek_v3"), TEXT
)


def family_of(folder: ModelFolder) -> str:
    """`Janus`, `DeepSeek-VL2` or `text`, by the `model_type` in `config.json`. Raises `ConfigError`."""
    config = folder.config
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise model_type_error(config, _FAMILIES)
    return _FAMILIES[model_type]


def label(folder: Path) -> str | None:
    """The note that shows wherever an embedded model runs, and says what it knows; None for other models."""
    folder = Path(os.path.realpath(folder))
    if folder.name in EMBEDDED and folder.parent == EMBEDDED_FOLDER.resolve():
        known = read_vocabulary(folder)
        return f"{folder.name}: embedded demonstration model" + (f", knows {known.counts}" if known else "")
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
    tensor_parallel: int | None = None,
    adapters: Sequence[AdapterChoice] = (),
) -> "Pipeline":
    """Load a model with the pipeline of its family; the label of an embedded model is printed to stderr.

    `must_paint` refuses models that can't generate images. `parts` says which parts of a Janus model are
    needed; others are always loaded whole. `eager` turns CUDA graphs off; `tensor_parallel` is the number of
    GPUs that share each layer; `adapters` are added. Raises `BifronsError`; weights that exceed the free
    memory of the device, or of those in the `device_map`, are refused before loading.
    """
    folder = open_model(model)
    family = family_of(folder)
    if must_paint and family != "Janus":
        raise OptionError(
            f"{model} is a {family} model, which {'' if family == TEXT else 'reads pictures but '}neither "
            "paints nor has codes of pictures; "
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
        "tensor_parallel": tensor_parallel,
    }
    with explain_out_of_memory(f"loading {model}", lambda: f"`bifrons info {model}` shows what it needs"):
        pipe = _from_pretrained(family, folder, device, dtype, parts, options)
        for adapter in adapters:
            pipe.load_adapter(adapter.folder, adapter.name, adapter.scale)
    return pipe


def _from_pretrained(
    family: str,
    folder: ModelFolder,
    device: str | None,
    dtype: str | None,
    parts: "Parts",
    options: dict[str, Any],
) -> "Pipeline":
    if family == "Janus":
        from ..janus.pipeline import JanusPipeline

        return JanusPipeline.from_pretrained(folder, device, dtype, parts=parts, **options)
    if family == TEXT:
        from ..text.pipeline import TextPipeline

        return TextPipeline.from_pretrained(folder, device, dtype, **options)
    from ..vl2.pipeline import VL2Pipeline

    return VL2Pipeline.from_pretrained(folder, device, dtype, **options)


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


def as_text(pipe: "Pipeline") -> "TextPipeline | None":
    """The pipeline if it is one of a text model, which reads no pictures."""
    from ..text.pipeline import TextPipeline

    return pipe if isinstance(pipe, TextPipeline) else None


def in_thought(pipe: "Pipeline", ids: Sequence[int]) -> bool:
    """Whether an answer to the prompt with these ids begins within a thought."""
    text = as_text(pipe)
    return text is not None and text.processor.in_thought(ids)


def chat_workload(pipe: "Pipeline") -> Workload:
    """The memory that a conversation, about one picture if it can be, takes."""
    from ..janus.pipeline import JanusPipeline
    from ..janus.variants import chat_workload as of_janus
    from ..text.pipeline import TextPipeline
    from ..text.variants import workloads as of_text
    from ..vl2.variants import workloads as of_vl2

    if isinstance(pipe, JanusPipeline):
        return of_janus(pipe.model.config)
    if isinstance(pipe, TextPipeline):
        return of_text(pipe.model.config)[0]
    return of_vl2(pipe.model.config)[0]


@contextmanager
def explain_out_of_memory(activity: str, advice: Callable[[], str]) -> Iterator[None]:
    """Turn a failed allocation into a `ResourceError`: "out of memory while {activity}; {advice}".

    Torch raises several kinds of exceptions for it. `advice` is called only when it is needed.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(f"out of memory while {activity}; {advice()}") from error


def public_name(model: str) -> str:
    """The name of a model in requests: a folder's last part; an embedded name or a hub id unchanged."""
    if model in EMBEDDED and not os.path.isdir(model):
        return model
    path = Path(model).expanduser()
    return path.resolve().name if os.path.isdir(path) else model
