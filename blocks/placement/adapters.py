"""LoRA adapters of a loaded model, added to its weights: steps, kernels and graphs are those of the model."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..checkpoints.loader import assign
from ..conversion.adapter import Adapter


class LoadedAdapters:
    """The adapters that are in a model's weights, by name, with their strengths."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.strengths = model, dict[str, float]()
        self._adapters: dict[str, Adapter] = {}
        # The parameters that adapters have changed, without them, on the CPU.
        self._plain: dict[str, Tensor] = {}

    def add(self, name: str, adapter: Adapter, strength: float) -> None:
        """Add an adapter, or replace the one of that name."""
        self._adapters[name], self.strengths[name] = adapter, strength
        self._update(adapter.changes)

    def remove(self, name: str) -> None:
        """Take an adapter out; without any, the weights have the bits that they were loaded with."""
        adapter = self._adapters.pop(name)
        del self.strengths[name]
        self._update(adapter.changes)

    @torch.no_grad()
    def _update(self, names: Iterable[str]) -> None:
        parameters = dict(self.model.named_parameters())
        for name in names:
            weight = parameters[name]
            plain = self._plain.setdefault(name, weight.detach().to("cpu", copy=True))
            changing = [key for key, adapter in self._adapters.items() if name in adapter.changes]
            merged = plain.to(weight.device, torch.float32, copy=True) if changing else plain
            for key in changing:
                self._adapters[key].apply(name, merged, self.strengths[key])
            assign(self.model, name, merged.to(weight.device, plain.dtype))
            if not changing:
                del self._plain[name]
