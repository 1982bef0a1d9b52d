"""A part of a model that turns a batch of inputs into outputs, by recordings: a vision tower and its adaptor.

Launching a tower's operations one by one takes longer than the device needs for a few pictures. So the part
is recorded once for each shape of its input, the second time that this comes up: a shape seen once would not
pay for its recording. Where nothing is recorded (`generation.records`), with gradients and for large batches
the part computes as ever.

N inputs of a batch.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..model.decoder import Decoder
from .cuda_graphs import Work, graph_capturer
from .generate import records
from .recordings import Weights

MOST = 16
"""Inputs of a batch that is recorded, at most: more keep the device busy for longer than launching takes."""
_KEPT = 8  # recordings of a part

Part = Callable[[Tensor], Tensor]


class GraphedModule:
    """One part of one model, and its recordings that were used last."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.capturer = device, graph_capturer(device)
        # Threads that prepare prompts come here beside each other and beside those that generate. All launch
        # on one stream, but between a replay and the copying of its output another thread may launch: graphs
        # of the same pool, which might write there, wait for the lock, and steps have pools of their own.
        self._lock = threading.Lock()
        self._met: set[object] = set()
        self._weights = Weights()
        self._made: OrderedDict[object, tuple[Tensor, list[Tensor], Work]] = OrderedDict()

    def run(self, modules: Sequence[nn.Module], part: Part, x: Tensor) -> Tensor:
        """`part(x)`, where it computes with the weights of `modules`; the output is the caller's own."""
        key = (x.shape, x.dtype, x.device)
        if key not in self._met:
            out = part(x)
            self._met.add(key)
            return out
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if self._weights.moved(*modules):
                self._made.clear()
            if key not in self._made:
                self._record(key, part, x)
            self._made.move_to_end(key)
            static, outs, replay = self._made[key]
            static.copy_(x)
            replay()
            return outs[0].clone()  # the next run writes over it

    def _record(self, key: object, part: Part, x: Tensor) -> None:
        if len(self._made) >= _KEPT:
            self._made.popitem(last=False)
        static = torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x)
        outs: list[Tensor] = []

        def work() -> None:
            outs[:] = [part(static)]

        self._made[key] = (static, outs, self.capturer(work))


_kept: WeakKeyDictionary[nn.Module, GraphedModule] = WeakKeyDictionary()
_making = threading.Lock()


def graphed_module_of(model: nn.Module, device: torch.device) -> GraphedModule:
    """What is kept for a model, as long as it lives there."""
    with _making:
        if model not in _kept or _kept[model].device != device:
            _kept[model] = GraphedModule(device)
        return _kept[model]


def run_graphed(
    model: nn.Module, decoder: Decoder, modules: Sequence[nn.Module], part: Part, x: Tensor
) -> Tensor:
    """`part(x)`, `[N, ...]` from `[N, ...]`, of a model whose `decoder` says whether its work is recorded."""
    if not records(decoder) or torch.is_grad_enabled() or not 0 < len(x) <= MOST:
        return part(x)
    if x.is_cuda and torch.cuda.is_current_stream_capturing():  # into a graph of the caller's
        return part(x)
    return graphed_module_of(model, x.device).run(modules, part, x)
