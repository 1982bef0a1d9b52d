"""Generation by recorded steps: head, guidance, choice, next embedding and decoder in one launch.

N sequences, T new tokens. Stations (their tensors and recordings) are kept with the decoder for the next
call. What differs between calls is written into a station's tensors, so that only another count of sequences,
a larger cache, or options that change which operations there are make something new.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..device import free_bytes
from ..model.decoder import Decoder
from ..model.kv_cache import KVCache
from .cuda_graphs import recorder_for
from .generate import Task
from .graph_buffers import Station
from .recordings import Weights

AHEAD = 2
"""Steps launched beyond the one whose tokens are waited for, so that the device never idles."""
_KEPT = 16
"""Stations of a decoder, if there is memory: fewer than the sizes of batches in use would be made again and
again."""
_SLOTS = 128


def bucket(count: int, least: int = 1) -> int:
    """The smallest of least x (1, 2, 4, 8, 12, 16, 24, 32, 48, ...) that is at least `count`."""
    size = least
    while size < count:
        if size >= 8 * least and size * 3 // 2 >= count:
            return size * 3 // 2
        size *= 2
    return size


def bucket_below(count: int) -> int:
    """The most sequences, up to `count`, that are not padded."""
    return next(size for size in range(count, 0, -1) if bucket(size) == size)


def slots_for(positions: int) -> int:
    """Slots of the cache that so many positions get. Many take much memory and are rounded up by little."""
    return bucket(positions, 64) if positions <= 2 * _SLOTS else -(-positions // _SLOTS) * _SLOTS


class Store:
    """The stations of one decoder: at most so many, those used last."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._lock = device, threading.Lock()
        self._free: list[Station] = []
        self._weights = Weights()
        self.recorder = recorder_for(device)

    @property
    def bytes(self) -> int:
        """Memory of the stations that no task uses."""
        with self._lock:
            return sum(station.bytes for station in self._free)

    def take(self, decoder: Decoder, task: Task) -> Station:
        """A station for the task, which nobody else uses until it is given back."""
        count, each = bucket(len(task.seeds)), task.choosing.rows_each
        positions = task.longest + task.max_new_tokens
        with self._lock:
            if self._weights.moved(task.voice.owner or decoder, decoder=decoder):
                self._free.clear()
            alike = [s for s in self._free if (s.count, s.rows_each) == (count, each)]
            fitting = [s for s in alike if s.slots >= positions]
            if fitting:
                station = min(fitting, key=lambda s: s.slots)
                self._free.remove(station)
                return station
            self._make_room(decoder, count * each, slots_for(positions))
        return Station(decoder, count, each, slots_for(positions), self.recorder)

    def give(self, station: Station) -> None:
        with self._lock:
            self._free.append(station)

    def clear(self) -> None:
        """Free the memory of all stations that no task uses."""
        with self._lock:
            self._free.clear()

    def _make_room(self, decoder: Decoder, rows: int, slots: int) -> None:
        config, dtype = decoder.config, decoder.embed_tokens.weight.dtype
        needed = rows * KVCache.row_bytes(slots, config.num_layers, config.cache_widths, dtype)
        while len(self._free) >= _KEPT or (self._free and free_bytes(self._device) < 1.2 * needed):
            self._free.pop(0)


_stores: WeakKeyDictionary[Decoder, Store] = WeakKeyDictionary()
_making = threading.Lock()


def store_of(decoder: Decoder) -> Store:
    """What is kept for a decoder, as long as it lives."""
    with _making:
        if decoder not in _stores:
            _stores[decoder] = Store(decoder.embed_tokens.weight.device)
        return _stores[decoder]


@contextmanager
def _begun(decoder: Decoder, task: Task) -> Iterator[Station]:
    """A station that has read the task's prompts, and is given back at the end."""
    store = store_of(decoder)
    station = store.take(decoder, task)
    try:
        station.begin(decoder, task)
        yield station
    finally:
        store.give(station)


@torch.inference_mode(False)  # or other calls could not write into a station's tensors
@torch.no_grad()
def captured_steps(decoder: Decoder, task: Task) -> Iterator[Tensor]:
    """`generate` by recorded steps; tokens `[N]` on the host."""
    with _begun(decoder, task) as station:
        count, total, form = len(task.seeds), task.max_new_tokens, task.choosing.form
        on_cuda = station.record_SN.device.type == "cuda"
        host_TN = torch.empty(total, station.count, dtype=torch.long, pin_memory=on_cuda)
        copied: list[torch.cuda.Event] = []
        launched = 0
        for step in range(total):
            while launched < min(total, step + 1 + AHEAD):
                station.step(decoder, task.voice, form, launched)
                host_TN[launched].copy_(station.record_SN[launched], non_blocking=True)
                if on_cuda:
                    copied.append(torch.cuda.Event())
                    copied[-1].record()
                launched += 1
            if on_cuda:
                copied[step].synchronize()
            yield host_TN[step, :count].clone()


@torch.inference_mode(False)  # or other calls could not write into a station's tensors
@torch.no_grad()
def captured_tokens(decoder: Decoder, task: Task) -> Tensor:
    """`generate_all` by recorded steps, int64 `[N, T]` on the host."""
    with _begun(decoder, task) as station:
        for step in range(task.max_new_tokens):
            station.step(decoder, task.voice, task.choosing.form, step)
        return station.record_SN[: task.max_new_tokens, : len(task.seeds)].t().cpu()
