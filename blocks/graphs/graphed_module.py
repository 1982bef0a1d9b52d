"""Vision towers and the VQ decoder as CUDA graphs: any part of a model that maps one batch to another.

For a few images, launching a tower's operations takes longer than computing them. The part is captured once
per input shape, on the shape's second use, since a shape seen once would not repay its capture. It runs
eagerly where nothing is captured (`uses_cuda_graphs`), with gradients, and for large batches.

N inputs of a batch.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..model.decoder import Decoder
from .cuda_graphs import WeightAddresses, Work, graph_capturer, uses_cuda_graphs

MAX_BATCH = 16
"""Largest batch that is captured; larger ones keep the device busy for longer than launching takes."""
_MAX_GRAPHS = 8  # per part

Part = Callable[[Tensor], Tensor]


class GraphedModule:
    """One part of one model, and its most recently used graphs."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.capturer = device, graph_capturer(device)
        # Several threads may prepare prompts while another generates, all on one stream. The lock keeps a
        # second graph of this memory pool from overwriting an output before it is copied; decode steps have
        # pools of their own.
        self._lock = threading.Lock()
        self._seen: set[object] = set()
        self._addresses = WeightAddresses()
        self._graphs: OrderedDict[object, tuple[Tensor, list[Tensor], Work]] = OrderedDict()

    @property
    def captured_batches(self) -> list[int]:
        """Batch sizes of the graphs, the least recently used first."""
        return [static.shape[0] for static, _, _ in self._graphs.values()]

    def run(self, modules: Sequence[nn.Module], part: Part, x: Tensor) -> Tensor:
        """`part(x)`, which uses the weights of `modules`; returns a new tensor."""
        key = (x.shape, x.dtype, x.device)
        if key not in self._seen:
            out = part(x)
            self._seen.add(key)
            return out
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if self._addresses.moved(*modules):
                self._graphs.clear()
            if key not in self._graphs:
                self._capture(key, part, x)
            self._graphs.move_to_end(key)
            static, outs, replay = self._graphs[key]
            static.copy_(x)
            replay()
            return outs[0].clone()  # the next run overwrites it

    def _capture(self, key: object, part: Part, x: Tensor) -> None:
        if len(self._graphs) >= _MAX_GRAPHS:
            self._graphs.popitem(last=False)
        static = torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x)
        outs: list[Tensor] = []

        def work() -> None:
            outs[:] = [part(static)]

        self._graphs[key] = (static, outs, self.capturer(work))


_modules: WeakKeyDictionary[nn.Module, GraphedModule] = WeakKeyDictionary()
_modules_lock = threading.Lock()


def graphed_module_of(model: nn.Module, device: torch.device) -> GraphedModule:
    """The graphs of `model` on this device, which live as long as the model does."""
    with _modules_lock:
        if model not in _modules or _modules[model].device != device:
            _modules[model] = GraphedModule(device)
        return _modules[model]


def run_graphed(
    model: nn.Module, decoder: Decoder, modules: Sequence[nn.Module], part: Part, x: Tensor
) -> Tensor:
    """`part(x)`, `[N, ...]` to `[N, ...]`, by a CUDA graph where `uses_cuda_graphs(decoder)`."""
    if not uses_cuda_graphs(decoder) or torch.is_grad_enabled() or not 0 < len(x) <= MAX_BATCH:
        return part(x)
    if x.is_cuda and torch.cuda.is_current_stream_capturing():  # the caller is capturing
        return part(x)
    return graphed_module_of(model, x.device).run(modules, part, x)
