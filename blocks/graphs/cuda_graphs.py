"""CUDA graphs: capturing work on static tensors, caching graphs, and detecting that weights were moved."""

import gc
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..device import graph_capture_lock
from ..kernels import dispatch
from ..kernels.batch_invariant import MAX_THREADS, libraries_are_batch_invariant
from ..model.decoder import Decoder
from ..model.layers import Linear
from ..torch_threads import suitable_threads
from .fused_weights import fuse_weights

Work = Callable[[], object]

_MAX_GRAPHS = 192  # per cache


def uses_cuda_graphs(decoder: Decoder) -> bool:
    """Whether a decoder's steps, and its model's parts in `graphed_module.py`, run as CUDA graphs."""
    device = decoder.device
    if decoder.layout is not None:  # offloaded weights have no fixed address
        return False
    if decoder.capture is False or device.type != "cuda":
        return False
    return not torch.is_autocast_enabled(device.type)


def is_row_invariant(decoder: Decoder) -> bool:
    """Whether a row's results are the same bits alone and in any batch: in float32 on the CPU, within the
    limits that batch_invariant.py names; in bfloat16 and float16 by kernels and graphs on CUDA."""
    if decoder.device.type == "cpu":
        return decoder.dtype == torch.float32
    if decoder.dtype == torch.float32 or not libraries_are_batch_invariant():
        return False
    return uses_cuda_graphs(decoder) and dispatch.device_has_kernels(decoder.device)


def checks_windows(decoder: Decoder) -> bool:
    """Whether a token's results are the same bits in a pass over several tokens of its sequence as alone, so
    that drafts change no token. In float32 on CUDA this is so of steps, not of prompts in other batches."""
    if decoder.device.type == "cpu":
        threads = suitable_threads(decoder) or torch.get_num_threads()
        return decoder.dtype == torch.float32 and threads <= MAX_THREADS
    if decoder.device.type == "cuda" and decoder.dtype == torch.float32:
        return uses_cuda_graphs(decoder) and dispatch.device_has_kernels(decoder.device)
    return is_row_invariant(decoder)


def bucket(count: int, least: int = 1) -> int:
    """`count` rounded up to the next of `least` times 1, 2, 4, 8, 12, 16, 24, 32, 48, ..."""
    size = least
    while size < count:
        if size >= 8 * least and size * 3 // 2 >= count:
            return size * 3 // 2
        size *= 2
    return size


class GraphCapturer:
    """A capturer for devices without graphs: replaying runs the work again."""

    def __init__(self) -> None:
        self.made = 0
        """Number of captures."""

    def __call__(self, work: Work) -> Work:
        """Capture work; returns a function that replays it on the same tensors. May also run the work."""
        self.made += 1
        return work


@cache
def _stream(index: int) -> torch.cuda.Stream:
    """The stream for all captures on a device: cuBLAS keeps a workspace per stream."""
    return torch.cuda.Stream(index)


class CudaGraphCapturer(GraphCapturer):
    """Captures CUDA graphs that share one memory pool, and so must not run at the same time."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        with torch.cuda.device(device):
            self._stream = _stream(torch.cuda.current_device())
        self._pool: Any = None
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def __call__(self, work: Work) -> Work:
        """Run the work once as a warm-up (kernels are built, workspaces allocated), then capture it."""
        self.made += 1
        with graph_capture_lock, torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                work()
            self._stream.synchronize()
            if self._pool is None or not self._graphs:  # a pool is freed with the last of its graphs
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            collecting = gc.isenabled()
            gc.disable()  # a collection during the capture might free a graph, which ends the capture
            try:
                with torch.cuda.stream(self._stream):
                    self._capture(graph, work)
            finally:
                if collecting:
                    gc.enable()
            current.wait_stream(self._stream)
        self._graphs.add(graph)
        return graph.replay

    def _capture(self, graph: torch.cuda.CUDAGraph, work: Work) -> None:
        # "thread_local": other threads may use the device during the capture.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            work()
        except BaseException:
            with suppress(RuntimeError):  # the capture is invalid already; the work's error is the cause
                graph.capture_end()
            self._pool = None
            raise
        graph.capture_end()


def graph_capturer(device: torch.device) -> GraphCapturer:
    """A capturer with a memory pool of its own."""
    return CudaGraphCapturer(device) if device.type == "cuda" else GraphCapturer()


class WeightAddresses:
    """Addresses of a model's weights: captured graphs are invalid once any weight was moved or replaced."""

    def __init__(self) -> None:
        self._addresses: list[int] = []

    def moved(self, *modules: nn.Module, decoder: Decoder | None = None) -> bool:
        """Whether any parameter or buffer of the modules has moved since the last call. If so, the weights of
        `decoder`, which belongs to the modules, are fused again. Layers on the CPU stop moving theirs."""
        if _addresses(modules) == self._addresses:
            return False
        for layer in chain.from_iterable(module.modules() for module in modules):
            if isinstance(layer, Linear) and layer.weight.device.type == "cpu":
                layer.prepacks = False
        if decoder is not None:
            with graph_capture_lock:
                fuse_weights(decoder)
        self._addresses = _addresses(modules)
        return True


def _addresses(modules: Sequence[nn.Module]) -> list[int]:
    """Addresses of all parameters and buffers, but for those of decoders within other modules. Faster than
    `parameters()`, which also builds names (0.3 instead of 0.9 ms for a vision tower, before every first
    token)."""
    addresses: list[int] = []
    pending: list[nn.Module | None] = list(modules)
    while pending:
        module = pending.pop()
        if module is not None:
            for tensors in (module._parameters, module._buffers):
                addresses += [tensor.data_ptr() for tensor in tensors.values() if tensor is not None]
            pending += (child for child in module._modules.values() if not isinstance(child, Decoder))
    return addresses


class CapturedGraphs:
    """An LRU cache of captured graphs by key; a graph is captured on first use."""

    def __init__(self, capturer: GraphCapturer, remote: Any = None) -> None:
        """`remote` is the `RemoteRunner` of a tensor-parallel model: what other ranks capture and replay."""
        self._capture, self._remote = capturer, remote
        self._graphs: OrderedDict[object, Work] = OrderedDict()

    @property
    def keys(self) -> list[object]:
        return list(self._graphs)

    def run(
        self, key: object, work: Work, changed: Sequence[Tensor] = (), pass_: tuple[Any, ...] | None = None
    ) -> None:
        """Run the work by the graph of this key, which is captured first if there is none.

        Capturing may run the work too, so the tensors that it reads and writes, `changed`, are restored
        before the first replay, and if the capture fails. `pass_` says what the other ranks of a
        tensor-parallel model compute at the same time: see `RemoteRunner.passes`.
        """
        if self._remote is None or pass_ is None:
            self._run(key, work, changed)
            return
        with self._remote.passes(pass_, key, fresh=key not in self._graphs):
            self._run(key, work, changed)

    def _run(self, key: object, work: Work, changed: Sequence[Tensor]) -> None:
        replay = self._graphs.get(key)
        if replay is None:
            if len(self._graphs) >= _MAX_GRAPHS:
                self._graphs.popitem(last=False)
            before = [tensor.clone() for tensor in changed]
            try:
                with graph_capture_lock:
                    replay = self._graphs[key] = self._capture(work)
            finally:
                for tensor, value in zip(changed, before, strict=True):
                    tensor.copy_(value)
        self._graphs.move_to_end(key)
        replay()

    def clear(self) -> None:
        self._graphs.clear()
        if self._remote is not None:
            self._remote.drop_graphs()

    def discard(self, first: object) -> None:
        """Drop the graphs whose keys begin with this."""
        for key in [key for key in self._graphs if isinstance(key, tuple) and key[0] == first]:
            del self._graphs[key]
