"""Recording work on static tensors, to be run again by one launch: CUDA graphs."""

import gc
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any
from weakref import WeakSet

import torch

from ..device import graph_capture_lock

Work = Callable[[], None]


class GraphCapturer:
    """For devices without graphs: the work itself is what runs it again."""

    def __init__(self) -> None:
        self.made = 0
        """How many recordings were made."""

    def __call__(self, work: Work) -> Work:
        """Returns what runs the work again, on the same tensors. The work may be run for that, or not."""
        self.made += 1
        return work


@cache
def _stream(index: int) -> torch.cuda.Stream:
    """One for all recorders of a device: products keep work space for every stream that they were on."""
    return torch.cuda.Stream(index)


class CudaGraphCapturer(GraphCapturer):
    """Records CUDA graphs that share one pool of memory: they are to be run one after the other."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        with torch.cuda.device(device):
            self._stream = _stream(torch.cuda.current_device())
        self._pool: Any = None
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def __call__(self, work: Work) -> Work:
        """Runs the work once (kernels are built and loaded, work space is made), then captures it."""
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
            gc.disable()  # what is collected during a capture might free a graph, which ends the capture
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
        # Other threads may go on with their own work on the device meanwhile.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            work()
        except BaseException:
            with suppress(RuntimeError):  # the capture is void already, and why is what the work raised
                graph.capture_end()
            self._pool = None
            raise
        graph.capture_end()


def graph_capturer(device: torch.device) -> GraphCapturer:
    """A capturer with a pool of its own."""
    return CudaGraphCapturer(device) if device.type == "cuda" else GraphCapturer()
