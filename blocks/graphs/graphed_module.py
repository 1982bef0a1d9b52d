"""Vision towers and the VQ decoder as CUDA graphs: any part of a model that maps one batch to another.

For a few images, launching a tower's operations takes longer than computing them. The part is captured for
a few batch sizes, which others are padded to, each on its second use, since one seen once would not repay its
capture. It runs eagerly where nothing is captured (`uses_cuda_graphs`), with gradients, and for larger
batches.

N inputs of a batch.
"""

import threading
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..model.decoder import Decoder
from .cuda_graphs import WeightAddresses, Work, graph_capturer, uses_cuda_graphs

BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16)
"""Batches that are captured; larger ones keep the device busy for longer than launching takes."""

Part = Callable[[Tensor], Tensor]


class GraphedModule:
    """One part of one model, and its graphs."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.capturer = device, graph_capturer(device)
        # Several threads may prepare prompts while another generates, all on one stream. The lock keeps a
        # second graph of this memory pool from overwriting an output before it is copied; decode steps have
        # pools of their own.
        self._lock = threading.Lock()
        self._seen: set[object] = set()
        self._addresses = WeightAddresses()
        self._graphs: dict[object, tuple[Tensor, list[Tensor], Work]] = {}

    @property
    def captured_batches(self) -> list[int]:
        """Batch sizes of the graphs, in the order of their captures."""
        return [static.shape[0] for static, _, _ in self._graphs.values()]

    def run(self, modules: Sequence[nn.Module], part: Part, x: Tensor) -> Tensor:
        """`part(x)`, which uses the weights of `modules`; returns a new tensor."""
        size = next(size for size in BATCH_SIZES if size >= len(x))
        key = (size, x.shape[1:], x.dtype, x.device)
        if key not in self._seen:
            out = part(x)
            self._seen.add(key)
            return out
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if self._addresses.moved(*modules):
                self._graphs.clear()
            if key not in self._graphs:
                self._capture(key, part, x.new_zeros(size, *x.shape[1:]))
            static, outs, replay = self._graphs[key]
            static[: len(x)] = x  # what stands after it came with earlier batches, and is not read
            replay()
            return outs[0][: len(x)].clone()  # the next run overwrites it

    def _capture(self, key: object, part: Part, static: Tensor) -> None:
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
    if not uses_cuda_graphs(decoder) or torch.is_grad_enabled() or not 0 < len(x) <= BATCH_SIZES[-1]:
        return part(x)
    if x.is_cuda and torch.cuda.is_current_stream_capturing():  # the caller is capturing
        return part(x)
    return graphed_module_of(model, x.device).run(modules, part, x)
