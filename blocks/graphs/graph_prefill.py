"""Prompts of several sequences in one pass; short passes are CUDA graphs.

N tokens of a pass, P parts of prompts, T positions, D decoder width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..device import ints_on_device
from .cuda_graphs import CapturedGraphs, bucket
from .kv_pool import KVPool
from .packed_decoder import PackedDecoder, TokenSlots

MAX_GRAPHED_TOKENS = 1024
"""Most tokens of a pass that is captured. More keep the device busy for longer than launching takes."""
_MIN_SPAN = 1024


def span_of(positions: int) -> int:
    """The power of two that bounds the positions of a pass: passes of equal spans share a graph."""
    return max(_MIN_SPAN, 1 << (positions - 1).bit_length())


@dataclass(eq=False)
class Row:
    """One sequence in the cache: slots `start` to `start + slots`, of which `length` are filled."""

    start: int
    slots: int
    length: int = 0
    hidden_D: Tensor | None = None
    """The last hidden state of the prompt, until the row takes part in steps."""
    removed: bool = False


class PromptPart(NamedTuple):
    """The next positions of a row's prompt."""

    row: Row
    x_TD: Tensor


class GraphPrefill:
    """Computes parts of prompts; graphs are kept in `graphs`."""

    def __init__(self, packed: PackedDecoder, pool: KVPool, graphs: CapturedGraphs) -> None:
        self.packed, self.pool, self.graphs = packed, pool, graphs
        self.block: int = packed.kernels.attention_prefill.PREFILL_BLOCK
        self._buffers: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def run(self, parts: Sequence[PromptPart]) -> None:
        """Run parts of prompts through the decoder; their rows get longer, and the last hidden states."""
        pieces, positions, starts, last = [], [], [], []
        for row, x_TD in parts:
            padding = -len(x_TD) % self.block
            pieces.append(pad(x_TD, (0, 0, 0, padding)))
            last.append(len(positions) + len(x_TD) - 1)
            positions += [*range(row.length, row.length + len(x_TD)), *[0] * padding]
            starts += [row.start] * len(x_TD) + [0] * padding
        hidden_ND, last_P = self._hidden(torch.cat(pieces), positions, starts, last)
        for (row, x_TD), hidden_D in zip(parts, hidden_ND[last_P], strict=True):
            row.length += len(x_TD)
            row.hidden_D = hidden_D

    def _hidden(
        self, x_ND: Tensor, positions: list[int], starts: list[int], last: list[int]
    ) -> tuple[Tensor, Tensor]:
        size, span = len(positions), span_of(max(positions) + 1)
        if size > MAX_GRAPHED_TOKENS:
            positions_N, starts_N, last_P = ints_on_device(x_ND.device, positions, starts, last)
            slots = TokenSlots(positions_N, starts_N, span, prefill=True)
            return self.packed.forward(x_ND, slots, self.pool), last_P
        rest = [0] * (bucket(size, self.block) - size)
        states = ints_on_device(x_ND.device, positions + rest, starts + rest, last)
        buffers = self._static(size + len(rest))
        buffers[0][:size] = x_ND
        for buffer, state in zip(buffers[1:], states[:2], strict=True):
            buffer.copy_(state)
        return self.run_graph(size + len(rest), span), states[2]

    def run_graph(self, size: int, span: int) -> Tensor:
        """The hidden states `[N, D]` of what is in the static tensors of `size` tokens."""
        x_ND, positions_N, starts_N = self._static(size)
        slots = TokenSlots(positions_N, starts_N, span, prefill=True)
        # The inputs are not needed after the first layer: the hidden states overwrite them.
        self.graphs.run(
            ("prefill", size, span),
            lambda: self.packed.forward(x_ND, slots, self.pool, x_ND),
            [x_ND],
        )
        return x_ND

    def _static(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings, positions and starts of `size` tokens."""
        if size not in self._buffers:
            decoder = self.packed.decoder
            width, device = decoder.config.hidden_size, decoder.device
            x_ND = torch.zeros(size, width, device=device, dtype=decoder.dtype)
            positions_N, starts_N = torch.zeros(2, size, dtype=torch.long, device=device)
            self._buffers[size] = (x_ND, positions_N, starts_N)
        return self._buffers[size]
