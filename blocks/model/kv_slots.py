"""The scheduler's KV cache: allocated once; rows are added and dropped as requests start and finish.

R rows of the cache, of which the first n are in use, D decoder width.
"""

import torch

from .decoder import Decoder
from .kv_cache import KVCache

BLOCK_SIZE = 4
"""Prompt positions per hashed block, for prefix caching."""


class KVSlotView(KVCache):
    """A view of rows `start` to `stop` of another cache; it shares that cache's memory."""

    def __init__(self, cache: KVCache, start: int, stop: int, filled: int) -> None:
        self.buffers = tuple(buffer[:, start:stop] for buffer in cache.buffers)
        self.positions = cache.positions[start:stop]
        self.rows = cache.rows[: stop - start]
        self.slots, self.filled, self.decoding = cache.slots, filled, False


class KVSlots:
    """The scheduler's cache, and for each row the hidden state from which its next token is sampled.

    `lengths` is the host's copy of the positions of the rows in use, so that no step synchronizes with the
    device. `block_hashes` identifies the prompt prefix that each row holds, block by block (`hash_blocks` in
    engine/prefill.py). Free rows keep theirs: what they hold can be copied until they are reused.
    """

    def __init__(self, decoder: Decoder, rows: int, context: int) -> None:
        self.cache = decoder.new_cache(rows, context)
        width = decoder.config.hidden_size
        self.hidden_RD = torch.zeros(rows, width, device=decoder.device, dtype=decoder.dtype)
        self.lengths: list[int] = []
        self.block_hashes: list[list[bytes]] = [[] for _ in range(rows)]

    @property
    def rows(self) -> int:
        """Number of rows, in use or free."""
        return len(self.block_hashes)

    def add(self, lengths: list[int]) -> int:
        """Take consecutive free rows for prompts of these lengths; returns the index of the first."""
        start = len(self.lengths)
        self.lengths += lengths
        return start

    def view(self, start: int, stop: int, filled: int) -> KVSlotView:
        """Rows `start` to `stop`, with the first `filled` slots in use."""
        return KVSlotView(self.cache, start, stop, filled)

    def copy(self, prefixes: list[tuple[int, int, int]]) -> None:
        """Copy the first `count` slots of row `source` to row `target`, for each (source, target, count).

        All sources are read before any target is written, so a row may be both.
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

    def truncate(self, count: int) -> None:
        """Free all rows from `count` on, with their block hashes."""
        del self.lengths[count:]
        self.block_hashes[count:] = [[] for _ in self.block_hashes[count:]]

    def clear(self, start: int, stop: int) -> None:
        """Set rows to zeros: attention multiplies masked values by zero, which must not meet a NaN."""
        for tensor in (*self.cache.buffers, self.hidden_RD[None]):
            tensor[:, start:stop] = 0
        self.block_hashes[start:stop] = [[] for _ in range(start, stop)]

    def drop(self, index: int) -> int:
        """Free a row and move the last row in use to its index; returns that row's former index."""
        last = len(self.lengths) - 1
        if index != last:
            length = self.lengths[last]
            for buffer in self.cache.buffers:
                buffer[:, index, :length] = buffer[:, last, :length]
            self.lengths[index] = length
            self.block_hashes[index] = self.block_hashes[last]
        self.lengths.pop()
        return last
