"""LoRA adapters of a loaded model: merged into its weights, or beside them.

Merged, steps, kernels and graphs are those of the model. Beside the weights, which may then be quantized, the
model and others with adapters run in one engine (`adapted.py`).
"""

import copy
import os
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..checkpoints.key_mapping import KeyMap
from ..checkpoints.loader import assign
from ..conversion.adapter import read_adapter
from ..conversion.adapter_change import Adapter
from ..device import graph_capture_lock, plain_torch
from ..errors import OptionError, check_number
from ..model.decoder import Decoder
from ..model.layers import Linear
from ..model.missing_parts import missing_prefixes
from ..model.quantized_weight import QuantizedWeight
from .adapted import adapted, fits_graphs, parameter_shapes


class LoadedAdapters:
    """The adapters of a model, by name, with their strengths.

    `beside` says that the model's weights stay as they are; `model` is then another one over them.
    """

    def __init__(self, base: Any, beside: bool) -> None:
        self.base, self.beside, self.model = base, beside, base
        self.strengths = dict[str, float]()
        self.adapters: dict[str, Adapter] = {}
        self._plain: dict[str, Tensor] = {}  # on the CPU, the changed parameters as they were
        self._number: list[int] = []  # of the model in use, if it isn't the base
        weakref.finalize(self, _forget, base.decoder, self._number)

    def add(self, name: str, adapter: Adapter, strength: float) -> None:
        """Add an adapter, or replace the one of that name."""
        before = self.adapters.get(name)
        self.adapters[name], self.strengths[name] = adapter, strength
        self._update({**(before.changes if before else {}), **adapter.changes})

    def remove(self, name: str) -> None:
        """Take an adapter out; without any, the weights have the bits that they were loaded with."""
        adapter = self.adapters.pop(name)
        del self.strengths[name]
        self._update(adapter.changes)

    def rebuild(self) -> None:
        """Bring `model` up to date, if the weights were moved or cast."""
        if self.beside:
            self._update(())

    def _update(self, names: Iterable[str]) -> None:
        if not self.beside:
            self._merge(names)
            return
        pairs = [(adapter, self.strengths[name]) for name, adapter in self.adapters.items()]
        self.model = adapted(self.base, pairs) if pairs else self.base
        decoder = self.base.decoder
        _forget(decoder, self._number)
        if pairs:
            self._number.append(self.model.decoder.adapters[-1])
            decoder.variants = {**decoder.variants, self._number[0]: self.model.decoder}

    @torch.no_grad()
    def _merge(self, names: Iterable[str]) -> None:
        parameters = dict(self.base.named_parameters())
        for name in names:
            weight = parameters[name]
            plain = self._plain.setdefault(name, weight.detach().to("cpu", copy=True))
            changing = [key for key, adapter in self.adapters.items() if name in adapter.changes]
            merged = plain.to(weight.device, torch.float32, copy=True) if changing else plain
            for key in changing:
                self.adapters[key].apply(name, merged, self.strengths[key])
            assign(self.base, name, merged.to(weight.device, weight.dtype))
            if not changing:
                del self._plain[name]


def _forget(decoder: Decoder, number: list[int]) -> None:
    """Take a decoder of this number, if any, from those in use."""
    if number:
        decoder.variants = {key: one for key, one in decoder.variants.items() if key != number[0]}
        number.clear()


class AdapterMethods:
    """What a pipeline does with LoRA adapters."""

    model: Any
    adapter_key_maps: Sequence[KeyMap] = ()
    """The spellings of names in adapters."""
    _adapters: LoadedAdapters | None = None

    @property
    def adapters(self) -> dict[str, float]:
        """The names of the loaded adapters, with their scales."""
        return dict(self._adapters.strengths) if self._adapters else {}

    def load_adapter(
        self, folder: str | os.PathLike[str], name: str | None = None, scale: float = 1.0
    ) -> None:
        """Add a LoRA adapter in PEFT's format to the model; several add up.

        It is merged into the weights or, where these are quantized, computed beside them. `name` is the
        folder's by default; an adapter of the same name is replaced. `scale` 1 is as it was trained, 0
        nothing. Raises `CheckpointError` for an adapter of another model or kind, and `OptionError` for a
        model that is spread over several devices.
        """
        check_number("scale", scale)
        if self.model.decoder.group is not None:
            raise OptionError(
                "an adapter can't be added to a model with tensor_parallel; merge it first with `bifrons "
                "convert MODEL FOLDER --merge-adapter ADAPTER`"
            )
        if self.model.decoder.layout is not None:
            raise OptionError(
                "an adapter can't be added to a model that is spread over several devices; merge it first "
                "with `bifrons convert MODEL FOLDER --merge-adapter ADAPTER`"
            )
        path = Path(folder)
        with graph_capture_lock, plain_torch():
            loaded = self._adapters
            if loaded is None:
                quantized = any(isinstance(module, QuantizedWeight) for module in self.model.modules())
                loaded = LoadedAdapters(self.model, beside=quantized)
            unpack(loaded.base)
            shapes, missing = parameter_shapes(loaded.base), tuple(missing_prefixes(loaded.base))
            adapter = read_adapter(path, self.adapter_key_maps, shapes, missing)
            if loaded.beside and not fits_graphs(loaded.base, adapter):
                loaded.base.decoder.capture = False
            loaded.add(name or path.absolute().name, adapter, float(scale))
            self._adapters, self.model = loaded, loaded.model

    def unload_adapter(self, name: str | None = None) -> None:
        """Take an adapter out, by default all; the weights then have the bits of the model again."""
        if name is not None and name not in self.adapters:
            loaded = ", ".join(self.adapters) or "none"
            raise OptionError(f"no adapter is called {name!r}; loaded: {loaded}")
        with graph_capture_lock, plain_torch():
            for one in [name] if name is not None else list(self.adapters):
                assert self._adapters is not None
                unpack(self._adapters.base)
                self._adapters.remove(one)
                self.model = self._adapters.model

    def with_adapter(
        self, folder: str | os.PathLike[str], name: str | None = None, scale: float = 1.0
    ) -> Self:
        """Another pipeline, of this model with an adapter beside its weights; arguments as in `load_adapter`.

        Both share weights and engine, and may generate at the same time. This pipeline's own adapters must
        not change as long as the other is used, nor may it be moved.
        """
        other = copy.copy(self)
        inherited = self._adapters
        base = self.model
        if inherited is not None and inherited.beside:
            base = inherited.base
        other._adapters = LoadedAdapters(base, beside=True)
        if inherited is not None and inherited.beside:
            for key, adapter in inherited.adapters.items():
                other._adapters.add(key, adapter, inherited.strengths[key])
        other.load_adapter(folder, name, scale)
        return other

    @property
    def adapter_arguments(self) -> list[tuple[Path, str, float]]:
        """The arguments of `load_adapter` for each loaded adapter."""
        pairs = self._adapters.adapters.items() if self._adapters else ()
        return [(adapter.folder, name, self.adapters[name]) for name, adapter in pairs]

    @property
    def adapter_settings(self) -> list[str]:
        """The loaded adapters as `FOLDER:SCALE@FINGERPRINT`, for the settings of pictures."""
        pairs = self._adapters.adapters.items() if self._adapters else ()
        return [f"{one.folder}:{self.adapters[name]:g}@{one.fingerprint}" for name, one in pairs]


def unpack(model: nn.Module) -> None:
    """Restore the plain weights of linear layers."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.unpack()
