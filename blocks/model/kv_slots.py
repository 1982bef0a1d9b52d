"""The scheduler's cache: allocated once, with rows that are added and dropped as requests come and go.

R rows of the cache, of which the first n are in use, D decoder width.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from .decoder import Decoder
from .kv_cache import KVCache

BLOCK = 4
"""Positions of a prompt that one mark identifies."""


class KVSlotView(KVCache):
    """Rows `start` to `stop` of another cache, as a cache that shares its memory."""

    def __init__(self, cache: KVCache, start: int, stop: int, filled: int) -> None:
        self.buffers = tuple(buffer[:, start:stop] for buffer in cache.buffers)
        self.positions = cache.positions[start:stop]
        self.rows = cache.rows[: stop - start]
        self.arrivals = cache.arrivals
        self.slots, self.filled = cache.slots, filled


class KVSlots:
    """The cache of a scheduler, and per row the hidden state from which its next token is sampled.

    `lengths` holds the positions of the rows in use on the host, so that no step synchronises with the
    device. `marks` identifies, block by block, the prompt that each row begins with (see engine/prefill.py).
    Free rows have marks too: their slots stay valid until the row is added again.
    """

    def __init__(self, decoder: Decoder, rows: int, context: int) -> None:
        self.cache = decoder.new_cache(rows, context)
        width = decoder.config.hidden_size
        self.hidden_RD = torch.zeros(rows, width, device=decoder.device, dtype=decoder.dtype)
        self.lengths: list[int] = []
        self.marks: list[list[bytes]] = [[] for _ in range(rows)]

    @property
    def rows(self) -> int:
        """Number of rows, in use or free."""
        return len(self.marks)

    @property
    def free(self) -> int:
        """Number of free rows."""
        return self.rows - len(self.lengths)

    def add(self, lengths: list[int]) -> int:
        """Put rows for prompts of these lengths into use; returns the index of the first."""
        start = len(self.lengths)
        self.lengths += lengths
        return start

    def view(self, start: int, stop: int, filled: int) -> KVSlotView:
        """Rows `start` to `stop`, of which the first `filled` slots are in use."""
        return KVSlotView(self.cache, start, stop, filled)

    def active(self) -> KVSlotView:
        """A view of all rows in use."""
        return self.view(0, len(self.lengths), max(self.lengths))

    def copy(self, prefixes: list[tuple[int, int, int]]) -> None:
        """Copy the first `count` slots of one row into another, for each (source, target, count).

        The result is as if all were copied at once: a row may be both source and target.
        """
        targets = {target for _, target, _ in prefixes}
        copies = []
        for source, target, count in prefixes:
            if source != target:
                parts = [buffer[:, source, :count] for buffer in self.cache.buffers]
                copies.append((target, count, [p.clone() if source in targets else p for p in parts]))
        for target, count, parts in copies:
            for buffer, part in zip(self.cache.buffers, parts, strict=True):
                buffer[:, target, :count] = part

    def park(self, stop: int) -> None:
        """Set the positions of free rows before `stop` to the end of their marked prompts, so that a step
        which computes these rows too overwrites none of those slots and stays within the cache (every prompt
        leaves room for one token).
        """
        ends = [BLOCK * len(marks) for marks in self.marks[len(self.lengths) : stop]]
        if ends:
            self.cache.positions[len(self.lengths) : stop] = sent(self.hidden_RD.device, ends)[0]

    def advance(self) -> None:
        """Note that every row in use is one position longer."""
        self.lengths = [length + 1 for length in self.lengths]

    def drop(self, index: int) -> int:
        """Free a row. The last row in use moves to its index; returns the index it had."""
        last = len(self.lengths) - 1
        if index != last:
            length = self.lengths[last]
            for buffer in self.cache.buffers:
                buffer[:, index, :length] = buffer[:, last, :length]
            self.cache.positions[index] = self.cache.positions[last]
            self.hidden_RD[index] = self.hidden_RD[last]
            self.lengths[index] = length
            self.marks[index] = self.marks[last]
        self.lengths.pop()
        return last

    def clear(self) -> None:
        """Free all rows, and forget what they hold."""
        self.lengths.clear()
        self.marks = [[] for _ in self.marks]


def sent(device: torch.device, *lists: Sequence[int]) -> list[Tensor]:
    """Lists of integers as int64 tensors on a device, sent in one asynchronous copy."""
    # Each begins at a multiple of 16 bytes: Triton compiles kernels again for pointers that do not.
    padded = [[*numbers, *[0] * (len(numbers) % 2)] for numbers in lists]
    joined = torch.tensor(list(chain.from_iterable(padded)), dtype=torch.long)
    parts = joined.to(device, non_blocking=True).split([len(numbers) for numbers in padded])
    return [part[: len(numbers)] for part, numbers in zip(parts, lists, strict=True)]


def take(rows: Tensor, indices: list[int]) -> Tensor:
    """Rows `[len(indices), ...]` of a tensor; a view, without a copy, if they are its first rows in order."""
    if indices == list(range(len(indices))):
        return rows[: len(indices)]
    return rows[sent(rows.device, indices)[0]]
