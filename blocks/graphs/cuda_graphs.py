"""CUDA graphs: capturing work on static tensors, caching the graphs, dropping them when weights move."""

import gc
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..device import graph_capture_lock
from ..model.decoder import Decoder
from .decode_step import sync_free_experts
from .fused_weights import join_weights

Work = Callable[[], None]

_MAX_GRAPHS = 48  # of a cache


def uses_cuda_graphs(decoder: Decoder) -> bool:
    """Whether a decoder's steps, and the towers that its model puts before it, run as CUDA graphs."""
    device = decoder.device
    if decoder.layout is not None:  # offloaded weights have no fixed address for a graph to hold
        return False
    if decoder.capture is False or device.type != "cuda":
        return False
    return not torch.is_autocast_enabled(device.type)


def bucket(count: int, least: int = 1) -> int:
    """The smallest of least x (1, 2, 4, 8, 12, 16, 24, 32, 48, ...) that is at least `count`."""
    size = least
    while size < count:
        if size >= 8 * least and size * 3 // 2 >= count:
            return size * 3 // 2
        size *= 2
    return size


def bucket_below(count: int) -> int:
    """The largest batch of at most `count` sequences that needs no padding."""
    return next(size for size in range(count, 0, -1) if bucket(size) == size)


class GraphCapturer:
    """For devices without graphs: to replay the work is to run it again."""

    def __init__(self) -> None:
        self.made = 0
        """Number of captures."""

    def __call__(self, work: Work) -> Work:
        """Capture work; returns what replays it, on the same tensors. Capturing may run the work, or not."""
        self.made += 1
        return work


@cache
def _stream(index: int) -> torch.cuda.Stream:
    """One for all capturers of a device: cuBLAS keeps a workspace for every stream."""
    return torch.cuda.Stream(index)


class CudaGraphCapturer(GraphCapturer):
    """Captures CUDA graphs that share one memory pool: they must not run at the same time."""

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
            if self._pool is None or not self._graphs:  # a pool ends with the last graph that it serves
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
        # "thread_local": other threads may go on with their own work on the device meanwhile.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            work()
        except BaseException:
            with suppress(RuntimeError):  # the capture is void already; the work's error is the reason
                graph.capture_end()
            self._pool = None
            raise
        graph.capture_end()


def graph_capturer(device: torch.device) -> GraphCapturer:
    """A capturer with a memory pool of its own."""
    return CudaGraphCapturer(device) if device.type == "cuda" else GraphCapturer()


class WeightAddresses:
    """Where a model's weights lie: captured graphs are void once any of them was moved or replaced."""

    def __init__(self) -> None:
        self._addresses: list[int] = []

    def moved(self, *modules: nn.Module, decoder: Decoder | None = None) -> bool:
        """Whether any parameter or buffer of the modules lies elsewhere than at the last call; the weights of
        `decoder`, one of them, are then joined anew."""
        if _addresses(modules) == self._addresses:
            return False
        if decoder is not None:
            with graph_capture_lock:
                join_weights(decoder)
        self._addresses = _addresses(modules)
        return True


def _addresses(modules: Sequence[nn.Module]) -> list[int]:
    """Addresses of all parameters and buffers. (`parameters()` also builds their names: for a vision tower
    that takes 0.9 ms, on the way to every first token, and this 0.3.)"""
    addresses: list[int] = []
    pending: list[nn.Module | None] = list(modules)
    while pending:
        module = pending.pop()
        if module is not None:
            for tensors in (module._parameters, module._buffers):
                addresses += [tensor.data_ptr() for tensor in tensors.values() if tensor is not None]
            pending += module._modules.values()
    return addresses


class CapturedGraphs:
    """A cache of a decoder's captured graphs by key; each is captured on first use, the least recently used
    is dropped."""

    def __init__(self, capturer: GraphCapturer) -> None:
        self._capture = capturer
        self._graphs: OrderedDict[object, Work] = OrderedDict()

    @property
    def keys(self) -> list[object]:
        return list(self._graphs)

    def run(self, decoder: Decoder, key: object, work: Work, changed: Sequence[Tensor] = ()) -> None:
        """Run the work of this key by its graph. Since capturing may run it too, the tensors that it has
        `changed` are restored before the first replay, which does everything else again."""
        replay = self._graphs.get(key)
        if replay is None:
            if len(self._graphs) >= _MAX_GRAPHS:
                self._graphs.popitem(last=False)
            before = [tensor.clone() for tensor in changed]
            with graph_capture_lock, sync_free_experts(decoder):
                replay = self._graphs[key] = self._capture(work)
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
        self._graphs.move_to_end(key)
        replay()

    def clear(self) -> None:
        self._graphs.clear()
