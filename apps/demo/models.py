"""The models that the page offers: loaded once, each with its queue of jobs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...blocks.checkpoints.hub import EMBEDDED, find_model_folder
from ...blocks.errors import CheckpointError, OptionError
from ..pipelines import as_text, label, load_pipeline
from .jobs import JobQueue

if TYPE_CHECKING:
    from ..pipelines import Pipeline


@dataclass
class LoadedModel:
    """A loaded model under the name the page shows. `note` is the label of an embedded model, else None."""

    name: str
    pipe: "Pipeline"
    note: str | None
    queue: JobQueue = field(default_factory=JobQueue)

    @property
    def family(self) -> str:
        """`Janus`, `DeepSeek-VL2` or `a text model`."""
        return "Janus" if self.paints else "a text model" if not self.sees else "DeepSeek-VL2"

    @cached_property
    def sees(self) -> bool:
        """Whether the model reads pictures."""
        return as_text(self.pipe) is None

    @cached_property
    def thinks(self) -> bool:
        """Whether answers begin with a thought."""
        text = as_text(self.pipe)
        return text is not None and text.thinks

    @cached_property
    def paints(self) -> bool:
        """Whether the model generates images."""
        return hasattr(self.pipe, "generate")

    @property
    def locates(self) -> bool:
        """Whether the model gives boxes for a phrase."""
        return hasattr(self.pipe, "locate")

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the model doesn't know when it reads; none for models of all words."""
        vocabulary = self.pipe.vocabulary
        return [] if vocabulary is None else vocabulary.unknown([text], "reading")

    @property
    def headline(self) -> str:
        """One line of Markdown that says which model this is."""
        adapters = "".join(f" · adapter {name} ({scale:g})" for name, scale in self.pipe.adapters.items())
        kind = self.note.partition(": ")[2] if self.note else self.family
        return f"**{self.name}** · {kind}{adapters}"


def embedded_models() -> list[str]:
    """Names of the embedded models that this installation carries."""
    names = []
    for name in EMBEDDED:
        try:
            find_model_folder(name)
        except CheckpointError:
            continue
        names.append(name)
    return names


def load_models(
    names: Sequence[str], device: str | None = None, dtype: str | None = None, **how: Any
) -> list[LoadedModel]:
    """Load models by name, folder or hub id, each once; `how` goes to `load_pipeline`.

    Raises `OptionError` where two models would have the same name.
    """
    loaded: list[LoadedModel] = []
    for name in dict.fromkeys(names):
        folder = find_model_folder(name)
        shown = folder.resolve().name if os.path.isdir(os.path.expanduser(name)) else name
        if any(shown == other.name for other in loaded):
            raise OptionError(f"two models are called {shown}; accepted: models with different names")
        loaded.append(LoadedModel(shown, load_pipeline(name, device, dtype, **how), label(folder)))
    return loaded


def find_model(models: Sequence[LoadedModel], name: str | None) -> LoadedModel:
    """The model of this name. Raises `OptionError`, listing the names, where there is none."""
    for loaded in models:
        if loaded.name == name:
            return loaded
    raise OptionError(f"model is {name!r}; accepted: {', '.join(loaded.name for loaded in models)}")
