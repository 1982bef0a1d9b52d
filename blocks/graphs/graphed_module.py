"""Vision towers (and the VQ decoder) as CUDA graphs: any part of a model that maps a batch to a batch.

Launching a tower's operations one by one takes longer than the device needs for a few images. The part is
captured once for each shape of its input, the second time that the shape comes up: one seen once would not
pay for its capture. Where nothing is captured (`uses_cuda_graphs`), with gradients and for large batches the
part runs eagerly.

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
"""Inputs of a captured batch, at most: more keep the device busy for longer than launching takes."""
_MAX_GRAPHS = 8  # of a part

Part = Callable[[Tensor], Tensor]


class GraphedModule:
    """One part of one model, and its most recently used graphs."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.capturer = device, graph_capturer(device)
        # Threads that prepare prompts come here beside each other and beside those that generate. All launch
        # on one stream, but between a replay and the copying of its output another thread may launch: graphs
        # of the same pool, which might write there, wait for the lock, and steps have pools of their own.
        self._lock = threading.Lock()
        self._met: set[object] = set()
        self._addresses = WeightAddresses()
        self._graphs: OrderedDict[object, tuple[Tensor, list[Tensor], Work]] = OrderedDict()

    @property
    def captured_batches(self) -> list[int]:
        """Batch sizes of the graphs, the least recently used first."""
        return [static.shape[0] for static, _, _ in self._graphs.values()]

    def run(self, modules: Sequence[nn.Module], part: Part, x: Tensor) -> Tensor:
        """`part(x)`, which computes with the weights of `modules`; the output is the caller's own."""
        key = (x.shape, x.dtype, x.device)
        if key not in self._met:
            out = part(x)
            self._met.add(key)
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
            return outs[0].clone()  # the next run writes over it

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
    """The graphs of a model's part, which live as long as the model does on this device."""
    with _modules_lock:
        if model not in _modules or _modules[model].device != device:
            _modules[model] = GraphedModule(device)
        return _modules[model]


def run_graphed(
    model: nn.Module, decoder: Decoder, modules: Sequence[nn.Module], part: Part, x: Tensor
) -> Tensor:
    """`part(x)`, `[N, ...]` from `[N, ...]`; the model's `decoder` says whether CUDA graphs are used."""
    if not uses_cuda_graphs(decoder) or torch.is_grad_enabled() or not 0 < len(x) <= MAX_BATCH:
        return part(x)
    if x.is_cuda and torch.cuda.is_current_stream_capturing():  # into a graph of the caller's
        return part(x)
    return graphed_module_of(model, x.device).run(modules, part, x)
