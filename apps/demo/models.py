"""The models that a page offers: loaded once, each with the line of those who want it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...blocks.checkpoints.hub import EMBEDDED, find_model_folder
from ...blocks.errors import CheckpointError, OptionError
from ..pipelines import label, load_pipeline
from .jobs import Line

if TYPE_CHECKING:
    from torch import Tensor

    from ..pipelines import Pipeline


@dataclass
class Served:
    """A loaded model under the name that the page shows, and what it is if it is an embedded one."""

    name: str
    pipe: "Pipeline"
    note: str | None
    line: Line = field(default_factory=Line)

    @property
    def family(self) -> str:
        return "Janus" if self.paints else "DeepSeek-VL2"

    @cached_property
    def paints(self) -> bool:
        return hasattr(self.pipe, "generate")

    @property
    def finds(self) -> bool:
        return hasattr(self.pipe, "locate")

    @property
    def headline(self) -> str:
        """Which model this is, in a line of Markdown."""
        if self.note:
            return f"**{self.name}** · {self.note.partition(': ')[2]}"
        return f"**{self.name}** · {self.family}"

    @cached_property
    def blank_codes(self) -> "Tensor":
        """Codes `[T]` of a light grey picture: what is shown where nothing is painted yet."""
        from PIL import Image

        from ...janus.pipeline import JanusPipeline

        assert isinstance(self.pipe, JanusPipeline)
        return self.pipe.encode_image(Image.new("RGB", (64, 64), (208, 208, 208)))


def embedded_models() -> list[str]:
    """Names of the embedded models that this installation carries."""
    found = []
    for name in EMBEDDED:
        try:
            find_model_folder(name)
        except CheckpointError:
            continue
        found.append(name)
    return found


def load_models(
    names: Sequence[str], device: str | None = None, dtype: str | None = None, **how: Any
) -> list[Served]:
    """The models, each once, by name, folder or hub id; an `OptionError` where two would look alike.

    `how` are other keywords of `load_pipeline`.
    """
    served: list[Served] = []
    for name in dict.fromkeys(names):
        folder = find_model_folder(name)
        shown = folder.resolve().name if Path(name).expanduser().is_dir() else name
        if any(shown == other.name for other in served):
            raise OptionError(f"two models are called {shown}; accepted: models with different names")
        served.append(Served(shown, load_pipeline(name, device, dtype, **how), label(folder)))
    return served


def by_name(models: Sequence[Served], name: str | None) -> Served:
    """The model that a visitor has chosen; an `OptionError` tells what there is."""
    for served in models:
        if served.name == name:
            return served
    raise OptionError(f"model is {name!r}; accepted: {', '.join(served.name for served in models)}")
