"""Models in worker processes: which one, and how it is loaded there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..blocks.adapter_choice import parse_adapter
from ..blocks.chat.pipeline import ChatPipeline
from ..blocks.placement.fingerprint import weights_fingerprint
from ..janus.model import Parts
from ..janus.pipeline import JanusPipeline
from .placement import NO_PLACEMENT, Placement

FAMILIES = ("vl2", "janus", "text")


def load_pipeline(
    family: str, model: str, load: Mapping[str, Any], adapters: Sequence[str] = (), parts: Parts = "read"
) -> ChatPipeline:
    """The pipeline of a model of one of `FAMILIES`. load: arguments of `from_pretrained`; adapters: LoRA
    adapters, each FOLDER:SCALE; parts: what a Janus model is for. Raises BifronsError."""
    if family == "janus":
        pipe = JanusPipeline.from_pretrained(model, parts=parts, progress=False, **load)
    elif family == "text":
        from ..text.pipeline import TextPipeline

        pipe = TextPipeline.from_pretrained(model, progress=False, **load)
    else:
        from ..vl2.pipeline import VL2Pipeline

        pipe = VL2Pipeline.from_pretrained(model, progress=False, **load)
    for adapter in map(parse_adapter, adapters):
        pipe.load_adapter(adapter.folder, scale=adapter.scale)
    return pipe


@dataclass(frozen=True)
class ModelChoice:
    """A model and the form in which it is loaded; picklable. family: one of `FAMILIES`; dtype: as resolved
    for the device; adapters: each FOLDER:SCALE."""

    family: str
    name: str
    dtype: str
    quantize: str | None = None
    adapters: tuple[str, ...] = ()
    placement: Placement = NO_PLACEMENT

    def load(self, device: str, parts: Parts = "read") -> ChatPipeline:
        """Its pipeline on a device. Raises BifronsError."""
        where = self.placement.keywords(device)
        load = {**where, "dtype": self.dtype, "quantize": self.quantize}
        return load_pipeline(self.family, self.name, load, self.adapters, parts)

    def load_painter(self, device: str) -> JanusPipeline:
        """`load` of what painting needs."""
        return cast(JanusPipeline, self.load(device, "paint"))

    def identity(self) -> dict[str, Any]:
        """What results depend on; `model` and `adapters` are names of folders, which may move."""
        return {
            "model": self.name,
            "adapters": list(self.adapters),
            "fingerprint": weights_fingerprint(self.name, self.adapters),
            "dtype": self.dtype,
            "quantize": self.quantize,
        }
