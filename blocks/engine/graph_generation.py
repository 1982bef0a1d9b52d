"""Generation by recorded steps: head, guidance, choice, next embedding and decoder in one launch.

N sequences, T new tokens. Buffers (their tensors and recordings) are kept with the decoder for the next
call. What differs between calls is written into static tensors, so that only another count of sequences,
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
from .cuda_graphs import graph_capturer
from .generate import GenerationBatch
from .graph_buffers import GraphBuffers
from .recordings import Weights

AHEAD = 2
"""Steps launched beyond the one whose tokens are waited for, so that the device never idles."""
_KEPT = 16
"""Buffers of a decoder, if there is memory: fewer than the sizes of batches in use would be made again and
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


class GraphPool:
    """The buffers of one decoder: at most so many, those used last."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._lock = device, threading.Lock()
        self._free: list[GraphBuffers] = []
        self._weights = Weights()
        self.capturer = graph_capturer(device)

    @property
    def bytes(self) -> int:
        """Memory of the buffers that no batch uses."""
        with self._lock:
            return sum(buffers.bytes for buffers in self._free)

    def take(self, decoder: Decoder, batch: GenerationBatch) -> GraphBuffers:
        """Buffers for the batch, which nobody else uses until they are given back."""
        count, each = bucket(len(batch.seeds)), batch.choosing.rows_each
        positions = batch.longest + batch.max_new_tokens
        with self._lock:
            if self._weights.moved(batch.head.owner or decoder, decoder=decoder):
                self._free.clear()
            alike = [s for s in self._free if (s.count, s.rows_each) == (count, each)]
            fitting = [s for s in alike if s.slots >= positions]
            if fitting:
                buffers = min(fitting, key=lambda s: s.slots)
                self._free.remove(buffers)
                return buffers
            self._make_room(decoder, count * each, slots_for(positions))
        return GraphBuffers(decoder, count, each, slots_for(positions), self.capturer)

    def give(self, buffers: GraphBuffers) -> None:
        with self._lock:
            self._free.append(buffers)

    def clear(self) -> None:
        """Free the memory of all buffers that no batch uses."""
        with self._lock:
            self._free.clear()

    def _make_room(self, decoder: Decoder, rows: int, slots: int) -> None:
        config, dtype = decoder.config, decoder.embed_tokens.weight.dtype
        needed = rows * KVCache.row_bytes(slots, config.num_layers, config.cache_widths, dtype)
        while len(self._free) >= _KEPT or (self._free and free_bytes(self._device) < 1.2 * needed):
            self._free.pop(0)


_pools: WeakKeyDictionary[Decoder, GraphPool] = WeakKeyDictionary()
_making = threading.Lock()


def graph_pool_of(decoder: Decoder) -> GraphPool:
    """What is kept for a decoder, as long as it lives."""
    with _making:
        if decoder not in _pools:
            _pools[decoder] = GraphPool(decoder.embed_tokens.weight.device)
        return _pools[decoder]


@contextmanager
def _begun(decoder: Decoder, batch: GenerationBatch) -> Iterator[GraphBuffers]:
    """Buffers that hold the batch's prompts, given back at the end."""
    pool = graph_pool_of(decoder)
    buffers = pool.take(decoder, batch)
    try:
        buffers.begin(decoder, batch)
        yield buffers
    finally:
        pool.give(buffers)


@torch.inference_mode(False)  # or other calls could not write into static tensors
@torch.no_grad()
def captured_steps(decoder: Decoder, batch: GenerationBatch) -> Iterator[Tensor]:
    """`generate` by recorded steps; tokens `[N]` on the host."""
    with _begun(decoder, batch) as buffers:
        count, total, mode = len(batch.seeds), batch.max_new_tokens, batch.choosing.mode
        on_cuda = buffers.record_SN.device.type == "cuda"
        host_TN = torch.empty(total, buffers.count, dtype=torch.long, pin_memory=on_cuda)
        copied: list[torch.cuda.Event] = []
        launched = 0
        for step in range(total):
            while launched < min(total, step + 1 + AHEAD):
                buffers.step(decoder, batch.head, mode, launched)
                host_TN[launched].copy_(buffers.record_SN[launched], non_blocking=True)
                if on_cuda:
                    copied.append(torch.cuda.Event())
                    copied[-1].record()
                launched += 1
            if on_cuda:
                copied[step].synchronize()
            yield host_TN[step, :count].clone()


@torch.inference_mode(False)  # or other calls could not write into static tensors
@torch.no_grad()
def captured_tokens(decoder: Decoder, batch: GenerationBatch) -> Tensor:
    """`generate_all` by recorded steps, int64 `[N, T]` on the host."""
    with _begun(decoder, batch) as buffers:
        for step in range(batch.max_new_tokens):
            buffers.step(decoder, batch.head, batch.choosing.mode, step)
        return buffers.record_SN[: batch.max_new_tokens, : len(batch.seeds)].t().cpu()
