"""One cache for rows that come and go: allocated once, rows in use kept together at the front.

R rows of the cache, n of them in use (always 0..n-1), D decoder width.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from .decoder import Decoder
from .kv_cache import KVCache

BLOCK = 4
"""Positions that a mark stands for."""


class KVSlotView(KVCache):
    """Rows `start` to `stop` of another cache as a cache of their own; writes go through to that one."""

    def __init__(self, cache: KVCache, start: int, stop: int, filled: int) -> None:
        self.buffers = tuple(buffer[:, start:stop] for buffer in cache.buffers)
        self.positions = cache.positions[start:stop]
        self.rows = cache.rows[: stop - start]
        self.arrivals = cache.arrivals
        self.slots, self.filled = cache.slots, filled


class KVSlots:
    """The cache of an engine, and per row the hidden state that its next token is chosen from.

    `lengths` mirrors the positions of the rows in use on the host, so that no step asks the device. `marks`
    tells of every row which prompt it begins with (`prefilling.fingerprints`), also of one that is in use no
    more: those slots stay as they are until it is taken again.
    """

    def __init__(self, decoder: Decoder, rows: int, context: int) -> None:
        self.cache = decoder.new_cache(rows, context)
        width = decoder.config.hidden_size
        self.hidden_RD = torch.zeros(rows, width, device=decoder.device, dtype=decoder.dtype)
        self.lengths: list[int] = []
        self.marks: list[list[bytes]] = [[] for _ in range(rows)]

    @property
    def rows(self) -> int:
        return len(self.marks)

    @property
    def free(self) -> int:
        return self.rows - len(self.lengths)

    def add(self, lengths: list[int]) -> int:
        """Take rows for prompts of these lengths behind those in use; the first one's place."""
        start = len(self.lengths)
        self.lengths += lengths
        return start

    def view(self, start: int, stop: int, filled: int) -> KVSlotView:
        return KVSlotView(self.cache, start, stop, filled)

    def active(self) -> KVSlotView:
        """All rows in use."""
        return self.view(0, len(self.lengths), max(self.lengths))

    def copy(self, beginnings: list[tuple[int, int, int]]) -> None:
        """Copy what (source, target, count) name: the first `count` slots of one row into another.

        All are as if done at once: a row may be both source and target.
        """
        targets = {target for _, target, _ in beginnings}
        taken = []
        for source, target, count in beginnings:
            if source != target:
                parts = [buffer[:, source, :count] for buffer in self.cache.buffers]
                taken.append((target, count, [p.clone() if source in targets else p for p in parts]))
        for target, count, parts in taken:
            for buffer, part in zip(self.cache.buffers, parts, strict=True):
                buffer[:, target, :count] = part

    def park(self, stop: int) -> None:
        """Let free rows before `stop` stand right behind what their marks tell of: a step over them spoils
        none of that, writes inside the cache (a prompt leaves room for a token), and reads no further.
        """
        held = [BLOCK * len(marks) for marks in self.marks[len(self.lengths) : stop]]
        if held:
            self.cache.positions[len(self.lengths) : stop] = sent(self.hidden_RD.device, held)[0]

    def advance(self) -> None:
        """Note that every row in use has got one position longer."""
        self.lengths = [length + 1 for length in self.lengths]

    def drop(self, place: int) -> int:
        """Give a row back. The last row in use moves into its place; returns the place it came from."""
        last = len(self.lengths) - 1
        if place != last:
            length = self.lengths[last]
            for buffer in self.cache.buffers:
                buffer[:, place, :length] = buffer[:, last, :length]
            self.cache.positions[place] = self.cache.positions[last]
            self.hidden_RD[place] = self.hidden_RD[last]
            self.lengths[place] = length
            self.marks[place] = self.marks[last]
        self.lengths.pop()
        return last

    def clear(self) -> None:
        """Give all rows back; nothing is known of what they hold."""
        self.lengths.clear()
        self.marks = [[] for _ in self.marks]


def sent(device: torch.device, *lists: Sequence[int]) -> list[Tensor]:
    """Lists of whole numbers as tensors int64, in one copy, for which nothing waits."""
    # Each begins at a multiple of 16 bytes: kernels are built anew for pointers that do not.
    even = [[*numbers, *[0] * (len(numbers) % 2)] for numbers in lists]
    together = torch.tensor(list(chain.from_iterable(even)), dtype=torch.long)
    parts = together.to(device, non_blocking=True).split([len(numbers) for numbers in even])
    return [part[: len(numbers)] for part, numbers in zip(parts, lists, strict=True)]


def take(rows: Tensor, places: list[int]) -> Tensor:
    """Rows `[len(places), ...]` of a tensor, without a copy where all of the first ones are asked for."""
    if places == list(range(len(places))):
        return rows[: len(places)]
    return rows[sent(rows.device, places)[0]]
