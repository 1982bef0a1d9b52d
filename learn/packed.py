"""Rows of tokens of one width, made ahead in several processes and drawn from on the device.

N rows, B of them drawn, L tokens of a row, T image tokens of a picture.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch import Tensor

from ..blocks.errors import OptionError
from ..blocks.files import temporary_path
from .losses import Batch

Arrays = dict[str, np.ndarray]
"""Arrays of N rows by name: those of `pack_rows`, and what the pictures of rows are made from."""
Turns = list[tuple[str, str]]
"""Questions with their answers."""
EncodeTurns = Callable[[Turns], tuple[list[int], list[bool]]]
"""Token ids of a conversation, and which of them are learned."""
IGNORED = -100
"""The target of a token that is not learned."""


@dataclass(frozen=True)
class PackedRows:
    """Prompts or conversations: `ids` `[N, L]`, padded at the right, `lengths` `[N]`, `learned` bool
    `[N, L]`, and `more` tensors of N rows each."""

    ids: Tensor
    lengths: Tensor
    learned: Tensor
    more: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "PackedRows":
        """Of the arrays that `build` makes, as tensors."""
        more = {name: value for name, value in arrays.items() if name not in ("ids", "lengths", "learned")}
        return cls(arrays["ids"], arrays["lengths"].long(), arrays["learned"], more)

    def to(self, device: str | torch.device) -> "PackedRows":
        """The rows on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def draw(self, count: int) -> "PackedRows":
        """`count` random rows, by torch's generator of the device."""
        index = torch.randint(len(self), (count,), device=self.ids.device)
        return self._each(lambda tensor: tensor[index])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "PackedRows":
        more = {name: change(value) for name, value in self.more.items()}
        return PackedRows(change(self.ids), change(self.lengths), change(self.learned), more)

    def reading(self, pixels: Tensor, places: Sequence[int]) -> Batch:
        """The batch of these conversations, whose images' tokens stand at the same `places` of every row."""
        batch, every = self._answers()
        columns = torch.cat([torch.arange(a, b, device=every.device) for a, b in _runs(places)])
        return replace(batch, pictures=every.index_select(1, columns).flatten(), pixels=pixels)

    def answering(self) -> Batch:
        """The batch of these conversations, which have no images."""
        return self._answers()[0]

    def _answers(self) -> tuple[Batch, Tensor]:
        """The batch of these conversations without their images, and the numbers of its places [N, L]."""
        rows, width = self.ids.shape
        ids = self.ids.long()
        targets = torch.where(self.learned, ids, IGNORED)[:, 1:].flatten()
        every = torch.arange(rows * width, device=ids.device).view(rows, width)
        return Batch(ids, self.lengths, width, None, every[:, :-1].flatten(), targets), every

    def painting(self, codes_BT: Tensor, pad_id: int, unconditional: float) -> Batch:
        """The batch of these prompts with the codes of their pictures; the prompts of a share `unconditional`
        are replaced by padding, as in guidance's unconditional row."""
        ids, positions = self.ids.long(), torch.arange(self.ids.shape[1], device=self.ids.device)
        inside = (positions > 0) & (positions < self.lengths[:, None] - 1)
        dropped = torch.rand(len(ids), device=ids.device) < unconditional
        ids = torch.where(inside & dropped[:, None], pad_id, ids)
        width = ids.shape[1] + codes_BT.shape[1] - 1
        return replace(Batch(ids, self.lengths, width, codes_BT.long()), dropped=dropped)


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Places in order as spans of neighbours: where each begins and ends."""
    breaks = [0, *(i for i in range(1, len(places)) if places[i] != places[i - 1] + 1), len(places)]
    return [(places[a], places[b - 1] + 1) for a, b in pairwise(breaks)]


def pack_rows(rows: Sequence[Sequence[int]], learned: Sequence[Sequence[bool]], width: int) -> Arrays:
    """Rows of token ids and which of them are learned, padded to `width`, in compact dtypes.

    Arrays rather than tensors, which torch passes between processes in shared memory with one file descriptor
    each. Raises `OptionError` for a row longer than `width`.
    """
    longest = max(map(len, rows))
    if longest > width:
        raise OptionError(f"a row of {longest} tokens does not fit in {width}")
    most = max(max(row) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int16 if most < 2**15 else np.int32)
    mask = np.zeros((len(rows), width), dtype=bool)
    for index, (row, flags) in enumerate(zip(rows, learned, strict=True)):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = flags
    return {"ids": ids, "lengths": np.array([len(row) for row in rows], dtype=np.int32), "learned": mask}


def encode_to_fit(encode: EncodeTurns, turns: Turns, width: int) -> tuple[list[int], list[bool]]:
    """Encode a conversation without as many of its last turns as don't fit in `width` tokens."""
    ids, learned = encode(turns)
    while len(ids) > width:
        turns = turns[:-1]
        ids, learned = encode(turns)
    return ids, learned


def stream(shard: Callable[[int], Arrays], shards: int, seed: int, workers: int) -> Iterator[Arrays]:
    """Shards made in parallel, in order, each as soon as it is there; shard i is made by `shard(seed + i)`,
    in any process, or in this one for less than two workers."""
    seeds = range(seed, seed + shards)
    if workers < 2:
        yield from map(shard, seeds)
    else:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            yield from pool.map(shard, seeds)


def build(shard: Callable[[int], Arrays], shards: int, seed: int, workers: int) -> Arrays:
    """All shards of `stream`, one after another."""
    parts = list(stream(shard, shards, seed, workers))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def save_rows(path: Path, arrays: Arrays) -> None:
    """Write arrays to a safetensors file; the old one stays whole until the new one is."""
    with temporary_path(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
        temporary.replace(path)


def load_rows(path: Path) -> PackedRows:
    """The rows of a file of `save_rows`."""
    return PackedRows.from_arrays(load_file(path))
