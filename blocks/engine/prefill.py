"""Prefill and one decode step over a KV cache; prefix caching for the scheduler.

B rows, R rows of a scheduler's cache, T positions, D decoder width.

Keys and values of a position depend only on the embeddings up to it. So `Prefiller` copies the common prefix
of a prompt and another row of the cache, of a running request or of a finished one whose row is still free:
usually the template and the system prompt, in a longer conversation all but the last question. It does so
only where results stay the same bit for bit (`is_batch_invariant`). On the CPU, idle cores share the rest.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..kernels.batch_invariant import is_batch_invariant
from ..model.decoder import Decoder
from ..model.kv_cache import KVCache
from ..model.kv_slots import BLOCK_SIZE, KVSlots
from ..sampling.request import Request
from ..torch_threads import idle_cores

PREFILL_CHUNK = 512
"""Prompt positions that the scheduler computes at once, which bounds the memory of activations."""
MIN_SHARED = 16
"""Shortest common prefix that is worth copying, or waiting for another prompt to copy from."""
MIN_COMPUTED = 4
"""Positions of a prompt that are always computed: the last one's hidden state is needed, and a single
position would take another path through attention."""
MIN_PER_THREAD = 64
"""Fewest positions that are worth a thread of their own."""


def embed_requests(requests: list[Request]) -> list[Request]:
    """Embed the prompts of requests with the same `embed`; equal inputs once."""
    embed = requests[0].embed
    assert embed is not None
    inputs = {id(request.inputs): request.inputs for request in requests}
    prompts = dict(zip(inputs, embed(list(inputs.values())), strict=True))
    for request in requests:
        prompt = prompts[id(request.inputs)]
        request.prompts_TD, request.seen_ids = (prompt.embeddings_TD,), prompt.ids
        request.inputs = None  # images, which are no longer needed
    return requests


def prefill(decoder: Decoder, rows: Sequence[Tensor], cache: KVCache, chunk: int | None = None) -> Tensor:
    """Run prompts, each `[T_i, D]`, from `cache.positions` on; returns their last hidden states `[B, D]`.

    Afterwards `cache.positions` is the prompts' lengths. `chunk` limits the positions of each row that are
    computed at once, which bounds the memory of activations and does not change the result.
    """
    device, empty = cache.positions.device, cache.filled == 0
    lengths = torch.tensor([len(row) for row in rows], device=device)
    x_BTD = pad_sequence(list(rows), batch_first=True)
    last_BD = x_BTD.new_zeros(len(rows), x_BTD.shape[-1])
    cache.decoding = False
    for start in range(0, x_BTD.shape[1], chunk or x_BTD.shape[1]):
        part_BTD = x_BTD[:, start : start + chunk] if chunk else x_BTD
        length = part_BTD.shape[1]
        cache.reserve(start + length)
        hidden_BTD = decoder(part_BTD, cache, from_start=empty and start == 0)
        index_B = lengths - 1 - start
        hidden_BD = hidden_BTD[cache.rows, index_B.clamp(0, length - 1)]
        last_BD = torch.where(((index_B >= 0) & (index_B < length))[:, None], hidden_BD, last_BD)
        cache.positions += length
    cache.positions.copy_(lengths)
    return last_BD


def decode(decoder: Decoder, x_BTD: Tensor, cache: KVCache) -> Tensor:
    """Run the next T tokens of every row, at the row's own positions; returns hidden states `[B, T, D]`."""
    cache.reserve(cache.filled + x_BTD.shape[1])
    cache.decoding = True
    hidden_BTD = decoder(x_BTD, cache)
    cache.positions += x_BTD.shape[1]
    return hidden_BTD


@dataclass(eq=False)
class _Row:
    """A prompt to prefill into row `index`; its first `shared` positions are copied from row `source`."""

    prompt_TD: Tensor
    block_hashes: list[bytes]
    source: int = 0
    shared: int = 0
    index: int = 0

    @property
    def computed(self) -> int:
        """Number of positions that are not copied."""
        return len(self.prompt_TD) - self.shared


def hash_blocks(prompt_TD: Tensor, adapters: tuple[int, ...] = ()) -> list[bytes]:
    """For each block of `BLOCK_SIZE` positions, a digest of the adapters and all embeddings to its end."""
    blocks = len(prompt_TD) // BLOCK_SIZE
    parts = prompt_TD.detach()[: blocks * BLOCK_SIZE].unflatten(0, (blocks, BLOCK_SIZE)).flatten(1).numpy()
    digest, digests = hashlib.sha256(repr(adapters).encode()), []
    for part in parts:
        digest.update(part.tobytes())
        digests.append(digest.digest())
    return digests


def common_prefix_length(a: Sequence[bytes], b: Sequence[bytes]) -> int:
    """Length in positions of the common prefix of two prompts, given their block hashes: whole blocks."""
    return BLOCK_SIZE * bisect_left(range(min(len(a), len(b))), True, key=lambda i: a[i] != b[i])


class Prefiller:
    """Prefills prompts into rows of `slots`. `add` must be called from one thread, without gradients."""

    def __init__(self, decoder: Decoder, slots: KVSlots) -> None:
        self.decoder, self.slots = decoder, slots
        self._threads: ThreadPoolExecutor | None = None
        self._chunk: int | None = None
        self.copied = 0
        """Total number of positions that were copied instead of computed."""

    def add(self, prompts: Sequence[Tensor], chunk: int | None = None, decoder: Any = None) -> list[int]:
        """Prefill prompts, each `[T, D]`, into free rows; returns the rows' indices.

        `chunk` limits the positions of each that are computed at once. A prompt that shares more with another
        new one than with the cache waits until that one is filled.
        """
        shares = is_batch_invariant(self.slots.hidden_RD)
        self._chunk, self._current = chunk, decoder or self.decoder
        salt = self._current.adapters
        rows = [_Row(prompt, hash_blocks(prompt, salt) if shares else []) for prompt in prompts]
        waiting = rows
        while waiting:
            batch: list[_Row] = []
            for row in waiting:
                self._find_source(row)
                lengths = [common_prefix_length(row.block_hashes, other.block_hashes) for other in batch]
                if max(lengths, default=0) < row.shared + MIN_SHARED:
                    batch.append(row)
            self._fill(batch)
            waiting = [row for row in waiting if row not in batch]
        return [row.index for row in rows]

    def close(self) -> None:
        """Stop the worker threads."""
        if self._threads is not None:
            self._threads.shutdown()

    def _find_source(self, row: _Row) -> None:
        """Find the row of the cache with the longest common prefix, if it is long enough to copy."""
        lengths = [common_prefix_length(row.block_hashes, hashes) for hashes in self.slots.block_hashes]
        shared = min(max(lengths), len(row.prompt_TD) - MIN_COMPUTED)
        if shared >= MIN_SHARED:
            row.source, row.shared = lengths.index(max(lengths)), shared

    def _fill(self, rows: list[_Row]) -> None:
        rows = sorted(rows, key=lambda row: row.computed)
        start = self.slots.add([len(row.prompt_TD) for row in rows])
        for index, row in enumerate(rows, start):
            row.index = index
            self.slots.block_hashes[index] = []
        self.slots.copy([(row.source, row.index, row.shared) for row in rows if row.shared])
        self.copied += sum(row.shared for row in rows)
        self._compute_all(self._groups(rows))
        for row in rows:
            self.slots.block_hashes[row.index] = row.block_hashes

    def _groups(self, rows: list[_Row]) -> list[list[_Row]]:
        """Batches of rows that are adjacent in the cache, for rows sorted by computed positions.

        Padding at most doubles a row's computed positions and stays within the cache. Batches that are large
        enough are divided among the idle cores.
        """
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
        """Number of threads that prefill."""
        # Cached on first use, by the scheduler's thread: torch's number of threads may be set until then.
        return idle_cores(self.slots.hidden_RD.device)

    def _compute_all(self, groups: list[list[_Row]]) -> None:
        if self.threads == 1 or len(groups) == 1:
            for group in groups:
                self._compute(group)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.threads, thread_name_prefix="bifrons-prefill")
        running = [self._threads.submit(self._compute, group) for group in groups]
        wait(running)  # for all, even if one fails: they write to the cache
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
        hidden = prefill(self._current, [row.prompt_TD[row.shared :] for row in group], view, self._chunk)
        view.positions += shared_B  # `prefill` sets them to the lengths of what it was given
        self.slots.hidden_RD[start:stop] = hidden
