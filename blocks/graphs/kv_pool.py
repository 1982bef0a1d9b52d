"""The kv cache of `PackedDecoder`: a pool of slots, of which each sequence owns a contiguous range.

L layers, the one that drafts (`Decoder.ahead`) included, H key/value heads, S slots, K dimensions of a head.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..device import free_bytes, release_cached_memory
from ..model.decoder import Decoder
from ..model.kv_cache import KVCache

SCRATCH = 32
"""Slots at the start of the pool that belong to no sequence; padding tokens are written there."""
_ALIGNMENT = 16  # slots; ranges begin at multiples, as kernels load whole vectors
_MULTIPLE = 1024  # slots by which the pool grows
_USABLE = 0.9  # of free memory


def range_length(count: int) -> int:
    """Slots that a range of at least `count` takes."""
    return -(-count // _ALIGNMENT) * _ALIGNMENT


class LayerSlots(NamedTuple):
    """The cache of one layer, as if it were the first, in the form of `KVPool`."""

    buffers: list[Tensor]


class KVPool:
    """Keys and values (or latents) of all layers, each `[L, H, S, K]`, and the ranges that are free.

    With `slots` None the pool is empty at first and grows as needed.
    """

    def __init__(self, decoder: Decoder, slots: int | None, remote: Any = None) -> None:
        """`remote` is the `RemoteRunner` of a tensor-parallel model, whose other ranks have pools of the same
        slots."""
        self._decoder, self._grows, self._remote = decoder, slots is None, remote
        self._layers = decoder.config.num_layers + len(decoder.ahead)
        self._free: list[tuple[int, int]] = []  # (start, length), by start
        self.buffers: list[Tensor] = []
        self.version = 0
        """Changes with the addresses of the buffers."""
        self.slots = 0
        if slots is not None:
            self.resize(slots, 0)

    @property
    def bytes(self) -> int:
        """Memory of the buffers."""
        return sum(buffer.numel() * buffer.itemsize for buffer in self.buffers)

    @property
    def is_unused(self) -> bool:
        """Whether no range is taken."""
        return sum(length for _, length in self._free) == max(self.slots - SCRATCH, 0)

    @property
    def last_layer(self) -> LayerSlots:
        """The slots of the last layer."""
        return LayerSlots([buffer[-1:] for buffer in self.buffers])

    def take(self, count: int) -> int | None:
        """The start of a free range of `count` slots, which is then in use; None if there is none."""
        count = range_length(count)
        for index, (start, length) in enumerate(self._free):
            if length >= count:
                self._free[index : index + 1] = [(start + count, length - count)] if length > count else []
                return start
        return None

    def give(self, start: int, count: int, clear: bool = False) -> None:
        """Return a range of `count` slots; with `clear`, as zeros."""
        if clear:
            self.zero(start, count)
        merged: list[tuple[int, int]] = []
        for first, length in sorted([*self._free, (start, range_length(count))]):
            if merged and sum(merged[-1]) == first:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((first, length))
        self._free = merged

    def grow(self, count: int) -> bool:
        """Make room for `count` more slots; False if the pool is of fixed size, or if memory is short."""
        if not self._grows:
            return False
        if self.is_unused:
            self.buffers, self.slots, self._free = [], 0, []  # frees the memory first
            release_cached_memory(self._decoder.device)  # no larger buffer fits into what was freed
        old, old_slots, free = self.buffers, self.slots, self._free
        new_slots = -(-(max(old_slots - SCRATCH, 0) + count) // _MULTIPLE) * _MULTIPLE
        config, dtype = self._decoder.config, self._decoder.dtype
        size = KVCache.row_bytes(new_slots, self._layers, config.cache_widths, dtype)
        if old and size > free_bytes(self._decoder.device) * _USABLE:
            return False
        try:
            self.resize(new_slots, old_slots if old else 0)
        except torch.OutOfMemoryError:
            self.slots = old_slots
            return False
        if old:
            self._free = free
            self.give(old_slots, self.slots - old_slots)
        return True

    def zero(self, start: int, count: int) -> None:
        """Set slots to zeros."""
        for buffer in self.buffers:
            buffer[:, :, start : start + count] = 0
        if self._remote is not None:
            self._remote.zero(start, count)

    def resize(self, slots: int, copied: int) -> None:
        """Allocate the buffers anew; the first `copied` slots are copied. All others are then free."""
        decoder, config = self._decoder, self._decoder.config
        if not copied:
            self.buffers = []  # frees the memory first
        old = self.buffers
        self.slots = SCRATCH + slots
        shapes = [(self._layers, heads, self.slots, dim) for heads, dim in config.cache_widths]
        # Zeros: attention multiplies masked values by zero, which must not meet a NaN.
        self.buffers = [torch.zeros(shape, device=decoder.device, dtype=decoder.dtype) for shape in shapes]
        for buffer, small in zip(self.buffers, old, strict=False):
            buffer[:, :, :copied] = small[:, :, :copied]
        self._free = [(SCRATCH, slots)]
        self.version += 1
        if self._remote is not None:
            self._remote.resize(slots, copied)
