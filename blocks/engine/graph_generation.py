"""`generate` by captured steps: token head, sampling, embedding and decoder in one launch.

N sequences, T new tokens. Each decoder has a pool of graph buffers that later calls reuse. What differs
between calls is written into static tensors, so only another bucket of sequences, a larger cache, or sampling
parameters that change the operations of a step need a new capture.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..device import free_bytes
from ..graphs.cuda_graphs import WeightAddresses, bucket, graph_capturer
from ..model.decoder import Decoder
from ..model.kv_cache import KVCache
from .graph_buffers import GraphBuffers
from .request import GenerationBatch

_STEPS_AHEAD = 2
"""Steps launched ahead of the one whose tokens the host waits for, so that the device never idles."""
_MAX_BUFFERS = 16
"""Free buffers kept per decoder, memory permitting: more than there are batch sizes in use, so that none is
rebuilt again and again."""
_SLOT_MULTIPLE = 128


def slots_for(positions: int) -> int:
    """Cache slots to allocate for `positions`: rounded up to a bucket, or beyond 256 to a multiple of 128, as
    more rounding would cost much memory there."""
    if positions <= 2 * _SLOT_MULTIPLE:
        return bucket(positions, 64)
    return -(-positions // _SLOT_MULTIPLE) * _SLOT_MULTIPLE


class GraphPool:
    """The free graph buffers of one decoder; the least recently used are dropped first."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._lock = device, threading.Lock()
        self._free: list[GraphBuffers] = []
        self._addresses = WeightAddresses()
        self.capturer = graph_capturer(device)

    @property
    def free(self) -> list[GraphBuffers]:
        """Buffers that no batch is using."""
        with self._lock:
            return list(self._free)

    @property
    def bytes(self) -> int:
        """Memory of the free buffers."""
        return sum(buffers.bytes for buffers in self.free)

    def take(self, decoder: Decoder, batch: GenerationBatch) -> GraphBuffers:
        """Buffers for the exclusive use of a batch, until `give`."""
        count, rows_each = bucket(len(batch.seeds)), batch.sampling.rows_each
        positions = batch.longest + batch.max_new_tokens
        with self._lock:
            if self._addresses.moved(batch.head.owner or decoder, decoder=decoder):
                self._free.clear()
            alike = [free for free in self._free if (free.count, free.rows_each) == (count, rows_each)]
            fitting = [free for free in alike if free.slots >= positions]
            if fitting:
                buffers = min(fitting, key=lambda free: free.slots)
                self._free.remove(buffers)
                return buffers
            self._make_room(decoder, count * rows_each, slots_for(positions))
        return GraphBuffers(decoder, count, rows_each, slots_for(positions), self.capturer)

    def give(self, buffers: GraphBuffers) -> None:
        """Return buffers to the pool."""
        with self._lock:
            self._free.append(buffers)

    def clear(self) -> None:
        """Drop the free buffers and their memory."""
        with self._lock:
            self._free.clear()

    def _make_room(self, decoder: Decoder, rows: int, slots: int) -> None:
        config, dtype = decoder.config, decoder.embed_tokens.weight.dtype
        needed = rows * KVCache.row_bytes(slots, config.num_layers, config.cache_widths, dtype)
        while len(self._free) >= _MAX_BUFFERS or (self._free and free_bytes(self._device) < 1.2 * needed):
            self._free.pop(0)


_pools: WeakKeyDictionary[Decoder, GraphPool] = WeakKeyDictionary()
_pools_lock = threading.Lock()


def graph_pool_of(decoder: Decoder) -> GraphPool:
    """The decoder's pool, which lives as long as the decoder."""
    with _pools_lock:
        if decoder not in _pools:
            _pools[decoder] = GraphPool(decoder.embed_tokens.weight.device)
        return _pools[decoder]


@contextmanager
def _prefilled(decoder: Decoder, batch: GenerationBatch) -> Iterator[GraphBuffers]:
    """Buffers with the batch's prompts prefilled, returned to the pool at the end."""
    pool = graph_pool_of(decoder)
    buffers = pool.take(decoder, batch)
    try:
        buffers.begin(decoder, batch)
        yield buffers
    finally:
        pool.give(buffers)


@torch.inference_mode(False)  # inference tensors could not be written to by later calls
@torch.no_grad()
def captured_steps(decoder: Decoder, batch: GenerationBatch) -> Iterator[Tensor]:
    """`generate` by captured steps; yields tokens `[N]` on the host."""
    with _prefilled(decoder, batch) as buffers:
        count, total, mode = len(batch.seeds), batch.max_new_tokens, batch.sampling.mode
        on_cuda = buffers.record_SN.device.type == "cuda"
        host_TN = torch.empty(total, buffers.count, dtype=torch.long, pin_memory=on_cuda)
        copied: list[torch.cuda.Event] = []
        launched = 0
        for step in range(total):
            while launched < min(total, step + 1 + _STEPS_AHEAD):
                buffers.step(decoder, batch.head, mode, launched)
                host_TN[launched].copy_(buffers.record_SN[launched], non_blocking=True)
                if on_cuda:
                    copied.append(torch.cuda.Event())
                    copied[-1].record()
                launched += 1
            if on_cuda:
                copied[step].synchronize()
            yield host_TN[step, :count].clone()


@torch.inference_mode(False)  # inference tensors could not be written to by later calls
@torch.no_grad()
def captured_tokens(decoder: Decoder, batch: GenerationBatch) -> Tensor:
    """`generate_all` by captured steps, int64 `[N, T]` on the host."""
    with _prefilled(decoder, batch) as buffers:
        for step in range(batch.max_new_tokens):
            buffers.step(decoder, batch.head, batch.sampling.mode, step)
        return buffers.record_SN[: batch.max_new_tokens, : len(batch.seeds)].t().cpu()
