"""Prefill and one decode step over a KV cache, and prompts into a scheduler's rows.

B rows, R rows of a scheduler's cache, T positions, D decoder width.

`Prefiller` copies what some row holds already. Keys and values of a position depend on the embeddings up to
it only, so a prompt that begins like one in the cache (of a request that runs, or of one that has finished
and whose row nobody took since) gets its first positions from there: mostly those of the template and the
system prompt, in a longer conversation all but the last question. That is done where it changes no bit
(`is_batch_invariant`). On the CPU, idle cores share the rest.
"""

import hashlib
import os
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..kernels.batch_invariant import is_batch_invariant
from ..model.decoder import Decoder
from ..model.kv_cache import KVCache
from ..model.kv_slots import BLOCK, KVSlots

PREFILL_CHUNK = 512
"""Positions of a prompt that are computed at once: bounds the memory of activations."""
MIN_SHARED = 16
"""Positions below which copying, or waiting for another prompt to copy from, isn't worth its while."""
MIN_COMPUTED = 4
"""Positions of a prompt that are always computed: the first token is sampled from the last one, and a single
position would take another path through attention than it does among others."""
MIN_PER_THREAD = 64
"""Positions below which a thread isn't worth its while."""


def prefill(decoder: Decoder, rows: Sequence[Tensor], cache: KVCache, chunk: int | None = None) -> Tensor:
    """Run whole prompts, each `[T_i, D]`, behind `cache.positions`; hidden states of the last ones `[B, D]`.

    With `chunk`, at most so many positions of each row at a time, which bounds the memory of activations;
    the result is the same.
    """
    device, empty = cache.positions.device, cache.filled == 0
    lengths = torch.tensor([len(row) for row in rows], device=device)
    x_BTD = pad_sequence(list(rows), batch_first=True)
    last_BD = x_BTD.new_zeros(len(rows), x_BTD.shape[-1])
    for start in range(0, x_BTD.shape[1], chunk or x_BTD.shape[1]):
        part_BTD = x_BTD[:, start : start + chunk] if chunk else x_BTD
        length = part_BTD.shape[1]
        cache.reserve(start + length)
        hidden_BTD = decoder(part_BTD, cache, begins=empty and start == 0)
        index_B = lengths - 1 - start
        hidden_BD = hidden_BTD[cache.rows, index_B.clamp(0, length - 1)]
        last_BD = torch.where(((index_B >= 0) & (index_B < length))[:, None], hidden_BD, last_BD)
        cache.positions += length
    cache.positions.copy_(lengths)
    return last_BD


def decode_one(decoder: Decoder, x_BD: Tensor, cache: KVCache) -> Tensor:
    """Run one position of every row, each written at the row's own position; hidden states `[B, D]`."""
    cache.reserve(cache.filled + 1)
    hidden = decoder(x_BD[:, None], cache)[:, 0]
    cache.positions += 1
    return hidden


@dataclass(eq=False)
class _Row:
    """A prompt to prefill into row `index`: `shared` of its positions are copied from row `source`."""

    prompt_TD: Tensor
    marks: list[bytes]
    source: int = 0
    shared: int = 0
    index: int = 0

    @property
    def computed(self) -> int:
        """Positions that are not copied."""
        return len(self.prompt_TD) - self.shared


def fingerprints(prompt_TD: Tensor) -> list[bytes]:
    """For each whole block of `BLOCK` positions a digest of everything up to its end."""
    blocks = len(prompt_TD) // BLOCK
    parts = prompt_TD.detach()[: blocks * BLOCK].unflatten(0, (blocks, BLOCK)).flatten(1).numpy()
    digest, digests = hashlib.sha256(), []
    for part in parts:
        digest.update(part.tobytes())
        digests.append(digest.digest())
    return digests


def common_prefix(a: Sequence[bytes], b: Sequence[bytes]) -> int:
    """Positions of the longest common prefix of two prompts, by their fingerprints: whole blocks."""
    return BLOCK * bisect_left(range(min(len(a), len(b))), True, key=lambda i: a[i] != b[i])


def idle_cores(device: torch.device) -> int:
    """Threads that may compute side by side, each with torch's own number of them."""
    if device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // torch.get_num_threads())


class Prefiller:
    """Fills rows of `slots` with prompts; `add` is called from one thread, without gradients."""

    def __init__(self, decoder: Decoder, slots: KVSlots) -> None:
        self.decoder, self.slots = decoder, slots
        self._threads: ThreadPoolExecutor | None = None
        self.copied = 0
        """Positions that were copied instead of computed, in all."""

    def add(self, prompts: Sequence[Tensor]) -> list[int]:
        """Take rows for prompts, each `[T, D]`, and prefill them; the rows."""
        shares = is_batch_invariant(self.slots.hidden_RD)
        rows = [_Row(prompt, fingerprints(prompt) if shares else []) for prompt in prompts]
        waiting = rows
        while waiting:
            now: list[_Row] = []
            for row in waiting:
                self._find_source(row)
                beside = max((common_prefix(row.marks, other.marks) for other in now), default=0)
                if beside < row.shared + MIN_SHARED:
                    now.append(row)
            self._fill(now)
            waiting = [row for row in waiting if row not in now]
        return [row.index for row in rows]

    def close(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown()

    def _find_source(self, row: _Row) -> None:
        counts = [common_prefix(row.marks, marks) for marks in self.slots.marks]
        most = min(max(counts), len(row.prompt_TD) - MIN_COMPUTED)
        if most >= MIN_SHARED:
            row.source, row.shared = counts.index(max(counts)), most

    def _fill(self, rows: list[_Row]) -> None:
        rows = sorted(rows, key=lambda row: row.computed)
        start = self.slots.add([len(row.prompt_TD) for row in rows])
        for index, row in enumerate(rows, start):
            row.index = index
            self.slots.marks[index] = []
        self.slots.copy([(row.source, row.index, row.shared) for row in rows if row.shared])
        self.copied += sum(row.shared for row in rows)
        self._compute_all(self._groups(rows))
        for row in rows:
            self.slots.marks[row.index] = row.marks

    def _groups(self, rows: list[_Row]) -> list[list[_Row]]:
        """Neighbours that are computed together. A row is padded to at most twice its computed positions, and
        not beyond the cache; what is long enough is divided among the idle cores."""
        alike: list[list[_Row]] = []
        for row in rows:
            group = alike[-1] if alike else []
            longest_shared = max((other.shared for other in group), default=0)
            fits = longest_shared + row.computed <= self.slots.cache.slots
            if group and row.computed <= 2 * group[0].computed and fits:
                group.append(row)
            else:
                alike.append([row])
        groups = []
        for group in alike:
            positions = sum(row.computed for row in group)
            parts = min(self.threads, len(group), max(1, positions // MIN_PER_THREAD))
            bounds = [len(group) * part // parts for part in range(parts + 1)]
            groups += [group[start:stop] for start, stop in pairwise(bounds)]
        return groups

    @cached_property
    def threads(self) -> int:
        """Threads that prefill at once."""
        # Asked for by the thread that computes, when it does: torch's number may be set until then.
        return idle_cores(self.slots.hidden_RD.device)

    def _compute_all(self, groups: list[list[_Row]]) -> None:
        if self.threads == 1 or len(groups) == 1:
            for group in groups:
                self._compute(group)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.threads, thread_name_prefix="bifrons-prefill")
        running = [self._threads.submit(self._compute, group) for group in groups]
        wait(running)  # for all of them, also where one fails: they write into the cache
        for future in running:
            future.result()

    @torch.no_grad()
    def _compute(self, group: list[_Row]) -> None:
        longest = max(row.shared for row in group) + max(row.computed for row in group)
        start, stop = group[0].index, group[-1].index + 1
        shared = any(row.shared for row in group)
        view = self.slots.view(start, stop, longest if shared else 0)
        shared_B = torch.tensor([row.shared for row in group], device=view.positions.device)
        view.positions.copy_(shared_B)
        hidden = prefill(self.decoder, [row.prompt_TD[row.shared :] for row in group], view, PREFILL_CHUNK)
        view.positions += shared_B  # `prefill` sets them to the lengths of what it was given
        self.slots.hidden_RD[start:stop] = hidden
