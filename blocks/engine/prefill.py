"""Prompts into an engine's rows: what a row holds already is copied, and idle cores share the rest.

R rows of the cache, n prompts, T positions of a prompt, D decoder width.

Keys and values of a position depend on the embeddings up to it only. So a prompt that begins like one in the
cache (of a request that runs, or of one that has ended and whose row nobody took since) gets its first
positions from there: as a rule those of the template and the system prompt, in a longer conversation all but
the last question. That is done where it changes no bit (`invariant.exact`).
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

from ..kernels.batch_invariant import is_batch_invariant
from ..model.decoder import Decoder
from ..model.kv_slots import BLOCK, KVSlots
from .generate import prefill

PREFILL_CHUNK = 512
"""Positions of a prompt that are computed at once: bounds the memory of activations."""
LEAST_SHARED = 16
"""Positions below which copying, or waiting for another prompt to copy from, isn't worth its while."""
LEAST_OWN = 4
"""Positions of a prompt that are computed in any case: its last one is what the first token comes from, and
a single one would take another path through attention than it does among others."""
LEAST_LANE = 64
"""Positions below which a thread isn't worth its while."""


@dataclass(eq=False)
class _Row:
    """A prompt on its way into the cache: `shared` of its positions are copied from row `source`."""

    prompt_TD: Tensor
    marks: list[bytes]
    source: int = 0
    shared: int = 0
    place: int = 0

    @property
    def own(self) -> int:
        return len(self.prompt_TD) - self.shared


def fingerprints(prompt_TD: Tensor) -> list[bytes]:
    """For each whole block of positions a digest of everything up to its end."""
    blocks = len(prompt_TD) // BLOCK
    parts = prompt_TD.detach()[: blocks * BLOCK].unflatten(0, (blocks, BLOCK)).flatten(1).numpy()
    digest, found = hashlib.sha256(), []
    for part in parts:
        digest.update(part.tobytes())
        found.append(digest.digest())
    return found


def common(a: Sequence[bytes], b: Sequence[bytes]) -> int:
    """Positions at which two prompts begin alike, by their fingerprints: whole blocks."""
    return BLOCK * bisect_left(range(min(len(a), len(b))), True, key=lambda i: a[i] != b[i])


def idle_cores(device: torch.device) -> int:
    """How many threads may compute side by side, each with torch's own number of them."""
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
        """Positions that were not computed."""

    def add(self, prompts: Sequence[Tensor]) -> list[int]:
        """Take rows for prompts, each `[T, D]`, and run them; their places."""
        shares = is_batch_invariant(self.slots.hidden_RD)
        rows = [_Row(prompt, fingerprints(prompt) if shares else []) for prompt in prompts]
        waiting = rows
        while waiting:
            now: list[_Row] = []
            for row in waiting:
                self._find_source(row)
                beside = max((common(row.marks, other.marks) for other in now), default=0)
                if beside < row.shared + LEAST_SHARED:
                    now.append(row)
            self._fill(now)
            waiting = [row for row in waiting if row not in now]
        return [row.place for row in rows]

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown()

    def _find_source(self, row: _Row) -> None:
        counts = [common(row.marks, held) for held in self.slots.marks]
        most = min(max(counts), len(row.prompt_TD) - LEAST_OWN)
        if most >= LEAST_SHARED:
            row.source, row.shared = counts.index(max(counts)), most

    def _fill(self, rows: list[_Row]) -> None:
        rows = sorted(rows, key=lambda row: row.own)
        start = self.slots.add([len(row.prompt_TD) for row in rows])
        for place, row in enumerate(rows, start):
            row.place = place
            self.slots.marks[place] = []
        self.slots.copy([(row.source, row.place, row.shared) for row in rows if row.shared])
        self.copied += sum(row.shared for row in rows)
        self._compute_all(self._groups(rows))
        for row in rows:
            self.slots.marks[row.place] = row.marks

    def _groups(self, rows: list[_Row]) -> list[list[_Row]]:
        """Neighbours that are computed together. A row is padded to at most twice its own positions, and not
        beyond the cache; what is long enough is divided among the idle cores."""
        alike: list[list[_Row]] = []
        for row in rows:
            group = alike[-1] if alike else []
            begun = max((other.shared for other in group), default=0)
            if group and row.own <= 2 * group[0].own and begun + row.own <= self.slots.cache.slots:
                group.append(row)
            else:
                alike.append([row])
        groups = []
        for group in alike:
            parts = min(self.lanes, len(group), max(1, sum(row.own for row in group) // LEAST_LANE))
            bounds = [len(group) * part // parts for part in range(parts + 1)]
            groups += [group[start:stop] for start, stop in pairwise(bounds)]
        return groups

    @cached_property
    def lanes(self) -> int:
        # Asked for by the thread that computes, when it does: torch's number may be set until then.
        return idle_cores(self.slots.hidden_RD.device)

    def _compute_all(self, groups: list[list[_Row]]) -> None:
        if self.lanes == 1 or len(groups) == 1:
            for group in groups:
                self._compute(group)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.lanes, thread_name_prefix="bifrons-prefill")
        running = [self._threads.submit(self._compute, group) for group in groups]
        wait(running)  # for all of them, also where one fails: they write into the cache
        for one in running:
            one.result()

    @torch.no_grad()
    def _compute(self, group: list[_Row]) -> None:
        longest = max(row.shared for row in group) + max(row.own for row in group)
        start, stop = group[0].place, group[-1].place + 1
        shared = any(row.shared for row in group)
        view = self.slots.view(start, stop, longest if shared else 0)
        begun = torch.tensor([row.shared for row in group], device=view.positions.device)
        view.positions.copy_(begun)
        hidden = prefill(self.decoder, [row.prompt_TD[row.shared :] for row in group], view, PREFILL_CHUNK)
        view.positions += begun  # `prefill` sets them to the lengths of what it was given
        self.slots.hidden_RD[start:stop] = hidden
