"""Examples on a device, drawn from while other processes still make new ones.

N examples, B of them drawn.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from queue import Empty, Full, Queue
from threading import Event, Thread

import numpy as np
import torch
from torch import Tensor

from .packed import Arrays

_AHEAD = 2
"""Shards in work for each process."""
_WAITING = 64
"""Shards that wait for the device, as they do while a step is compiled."""


class ExamplePool:
    """Arrays of N examples each, by name, on a device: `capacity` at most, of which new ones replace the
    oldest.

    `shard(seed)` makes a number of examples; seeds count up from `seed`. The pool has at least `first` when
    it is made. With two workers or more, these go on making examples in the background until `close`, and
    `refresh` takes what is ready; so which examples are there at a step depends on the machine's speed.
    Worker processes import `shard`, which must be picklable.
    """

    def __init__(
        self,
        shard: Callable[[int], Arrays],
        first: int,
        capacity: int,
        seed: int,
        workers: int,
        device: str | torch.device,
    ) -> None:
        self.device, self.capacity = torch.device(device), capacity
        self.made = 0
        """Examples that were made so far."""
        self.tensors: dict[str, Tensor] = {}
        self._count = torch.zeros((), device=self.device)
        self._ready: Queue[dict[str, Tensor] | BaseException] = Queue(_WAITING)
        self._closed = Event()
        self._thread: Thread | None = None
        if workers < 2:
            for number in count(seed):
                self._put(self._pinned(shard(number)))
                if self.made >= first:
                    return
        self._thread = Thread(target=self._make, args=(shard, seed, workers), daemon=True)
        self._thread.start()
        while self.made < first:
            self._take(self._ready.get())

    def refresh(self) -> None:
        """Take the examples that are ready. Raises the error of a worker that failed."""
        while True:
            try:
                self._take(self._ready.get_nowait())
            except Empty:
                return

    def draw(self, batch: int) -> dict[str, Tensor]:
        """Random examples `[B, ...]`, by torch's generator of the device, in tensor operations of the same
        shapes at every call."""
        numbers = torch.rand(batch, device=self.device, dtype=torch.float64) * self._count
        return {name: tensor[numbers.long()] for name, tensor in self.tensors.items()}

    def close(self) -> None:
        """Stop making examples."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _take(self, found: dict[str, Tensor] | BaseException) -> None:
        if isinstance(found, BaseException):
            raise found
        self._put(found)

    def _put(self, new: dict[str, Tensor]) -> None:
        for name, tensor in new.items():
            if name not in self.tensors:
                shape = (self.capacity, *tensor.shape[1:])
                self.tensors[name] = torch.zeros(shape, dtype=tensor.dtype, device=self.device)
            size, at = len(tensor), self.made % self.capacity
            before_end = min(size, self.capacity - at)
            self.tensors[name][at : at + before_end].copy_(tensor[:before_end], non_blocking=True)
            rest = tensor[before_end : before_end + at]
            self.tensors[name][: len(rest)].copy_(rest, non_blocking=True)
        self.made += len(next(iter(new.values())))
        self._count.fill_(float(min(self.made, self.capacity)))

    def _pinned(self, arrays: Arrays) -> dict[str, Tensor]:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        pins = self.device.type == "cuda"
        return {name: tensor.pin_memory() if pins else tensor for name, tensor in tensors.items()}

    def _make(self, shard: Callable[[int], Arrays], seed: int, workers: int) -> None:
        try:
            with ProcessPoolExecutor(workers, get_context("spawn")) as processes:
                for arrays in self._results(processes, shard, seed, workers):
                    self._offer(self._pinned(arrays))
        except BaseException as error:  # raised by the thread that trains
            self._offer(error)

    def _offer(self, found: dict[str, Tensor] | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._ready.put(found, timeout=0.2)
                return
            except Full:
                continue

    def _results(
        self, processes: ProcessPoolExecutor, shard: Callable[[int], Arrays], seed: int, workers: int
    ) -> Iterator[Arrays]:
        working: list[Future[Arrays]] = []
        for number in count(seed):
            working.append(processes.submit(shard, number))
            if len(working) >= _AHEAD * workers:
                yield working.pop(0).result()
            if self._closed.is_set():
                processes.shutdown(wait=False, cancel_futures=True)
                return
