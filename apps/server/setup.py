"""What a server is started with, and its models loaded from it: in the command's process, or in a replica."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ...blocks.adapter_choice import AdapterChoice
from ...blocks.errors import check_integer
from ...blocks.torch_threads import is_small, set_threads
from ..notes import note
from ..pipelines import public_name
from .limits import ServerOptions
from .registry import ModelRegistry


@dataclass(frozen=True)
class ServerSetup:
    """Models and adapters, how they are loaded (keywords of `load_pipeline`), and the server's options;
    picklable. threads: see `set_num_threads`. warm_up: whether kernels and graphs are made before it serves.
    """

    models: tuple[str, ...]
    options: ServerOptions
    adapters: tuple[AdapterChoice, ...] = ()
    loading: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    warm_up: bool = True

    @property
    def names(self) -> list[str]:
        """The names of the models and adapters in requests."""
        return [*map(public_name, self.models), *(adapter.shown_name for adapter in self.adapters)]

    def open(self) -> ModelRegistry:
        """Load everything, and start the schedulers. Raises `BifronsError`."""
        registry = ModelRegistry(self.options)
        for model in self.models:
            registry.load(model, **self.loading)
        for adapter in self.adapters:
            registry.add_adapter(adapter)
        set_num_threads(self.threads, [served.pipe.model.decoder for served in registry.models.values()])
        registry.open()
        for served in registry.engines:
            note(f"{served.name}: a cache of {served.capacity}")
        if self.warm_up:
            registry.warm_up()
        registry.start()
        return registry


def set_num_threads(threads: int | None, decoders: Iterable[Any]) -> None:
    """Set the number of torch's threads; to be called before any scheduler runs.

    It is `threads` if given, else OMP_NUM_THREADS if set, else 1 if all decoders are small and on the CPU,
    else torch's default. Raises `OptionError` if `threads` is less than 1.
    """
    if threads is not None:
        set_threads(check_integer("threads", threads, low=1))
    elif "OMP_NUM_THREADS" not in os.environ and all(map(is_small, decoders)):
        torch.set_num_threads(1)
