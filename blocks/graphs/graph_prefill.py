"""Prompts of several sequences in one pass; short passes are CUDA graphs.

N tokens of a pass, P parts of prompts, T positions, D decoder width.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..device import ints_on_device
from ..drafts import LayerDraftKind
from ..sampling.request import Request
from .adapter_slots import NO_SLOT
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
    adapter: int = NO_SLOT
    length: int = 0
    hidden_D: Tensor | None = None
    """The last hidden state of the prompt, until the row takes part in steps."""
    removed: bool = False


def is_adapted(rows: Iterable[Row]) -> bool:
    """Whether any of the rows has an adapter."""
    return any(row.adapter != NO_SLOT for row in rows)


def is_drafted(request: Request) -> bool:
    """Whether drafts of the request are made by the layer `Decoder.ahead`, where the runner has it."""
    drafts = request.head.drafts
    return request.speculate is not False and not request.mode.guided and isinstance(drafts, LayerDraftKind)


class PromptPart(NamedTuple):
    """The next positions of a row's prompt, and if it is drafted by a layer, the embeddings after each; the
    prompt's last position has none."""

    row: Row
    x_TD: Tensor
    next_TD: Tensor | None = None


class GraphPrefill:
    """Computes parts of prompts; graphs are kept in `graphs`."""

    def __init__(self, packed: PackedDecoder, pool: KVPool, graphs: CapturedGraphs) -> None:
        self.packed, self.pool, self.graphs = packed, pool, graphs
        self.block: int = packed.kernels.attention_prefill.PREFILL_BLOCK
        self._ahead = packed.ahead_over(pool)
        self._buffers: dict[int, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = {}

    def plan(
        self, requests: Sequence[Request], rows_of: Mapping[Request, Sequence[Row]], tokens: int
    ) -> list[PromptPart]:
        """The next parts of the requests' prompts, of up to about so many tokens."""
        parts: list[PromptPart] = []
        for request in requests:
            limit = request.prefill_chunk or tokens
            for row, prompt_TD in zip(rows_of[request], request.prompts_TD, strict=True):
                count = min(len(prompt_TD) - row.length, limit, tokens)
                if count <= 0:
                    continue
                part, after = slice(row.length, row.length + count), None
                if self._ahead is not None and is_drafted(request):
                    after = prompt_TD[part.start + 1 : part.stop + 1]
                parts.append(PromptPart(row, prompt_TD[part], after))
                tokens -= -(-count // self.block) * self.block
        return parts

    def run(self, parts: Sequence[PromptPart]) -> None:
        """Run parts of prompts through the decoder; their rows get longer, and the last hidden states."""
        pieces, positions, starts, adapters, last = [], [], [], [], []
        for row, x_TD, _ in parts:
            padding = -len(x_TD) % self.block
            pieces.append(pad(x_TD, (0, 0, 0, padding)))
            last.append(len(positions) + len(x_TD) - 1)
            positions += [*range(row.length, row.length + len(x_TD)), *[0] * padding]
            starts += [row.start] * len(x_TD) + [0] * padding
            adapters += [row.adapter] * len(x_TD) + [NO_SLOT] * padding
        adapted, after_ND = is_adapted(part.row for part in parts), None
        if any(part.next_TD is not None for part in parts):
            both = zip(parts, pieces, strict=True)
            after_ND = torch.cat([_padded(part.next_TD, piece_TD) for part, piece_TD in both])
        inputs = torch.cat(pieces), after_ND
        hidden_ND, last_P = self._hidden(*inputs, (positions, starts, adapters), last, adapted)
        for (row, x_TD, _), hidden_D in zip(parts, hidden_ND[last_P], strict=True):
            row.length += len(x_TD)
            row.hidden_D = hidden_D

    def _hidden(
        self,
        x_ND: Tensor,
        after_ND: Tensor | None,
        states: tuple[list[int], list[int], list[int]],
        last: list[int],
        adapted: bool,
    ) -> tuple[Tensor, Tensor]:
        positions, size = states[0], len(x_ND)
        span, rest = span_of(max(positions) + 1), bucket(size, self.block) - size
        if size > MAX_GRAPHED_TOKENS:
            *states_N, last_P = ints_on_device(x_ND.device, *states, last)
            slots = _token_slots(states_N, span, adapted)
            hidden_ND = self.packed.forward_here(x_ND, slots, self.pool)
            if self._ahead is not None and after_ND is not None:
                self._ahead(after_ND, hidden_ND, slots._replace(adapters_N=None))
            return hidden_ND, last_P
        padded = [numbers + [filler] * rest for numbers, filler in zip(states, (0, 0, NO_SLOT), strict=True)]
        *states_N, last_P = ints_on_device(x_ND.device, *padded, last)
        buffers = self._static(size + rest)
        buffers[0][:size] = x_ND
        if after_ND is not None:
            buffers[1][:size] = after_ND
        for buffer, state_N in zip(buffers[2:], states_N, strict=True):
            buffer.copy_(state_N)
        return self.run_graph(size + rest, span, adapted, after_ND is not None), last_P

    def run_graph(self, size: int, span: int, adapted: bool, drafted: bool = False) -> Tensor:
        """The hidden states `[N, D]` of what is in the static tensors of `size` tokens; if `drafted`, the
        layer that drafts runs too."""
        x_ND, after_ND, *states_N = self._static(size)
        slots = _token_slots(states_N, span, adapted)

        def work() -> None:
            # The inputs are not needed after the first layer: the hidden states overwrite them.
            self.packed.forward(x_ND, slots, self.pool, x_ND)
            if drafted and self._ahead is not None:
                self._ahead(after_ND, x_ND, slots._replace(adapters_N=None))

        self.graphs.run(("prefill", size, span, adapted, drafted), work, [x_ND], (size, span, True, ()))
        return x_ND

    def _static(self, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Embeddings, those of the next tokens (of none where no layer drafts), positions, starts and
        adapters of `size` tokens."""
        if size not in self._buffers:
            decoder = self.packed.decoder
            width, device = decoder.config.hidden_size, decoder.device
            x_ND = torch.zeros(size, width, device=device, dtype=decoder.dtype)
            after_ND = x_ND[:0] if self._ahead is None else torch.zeros_like(x_ND)
            positions_N, starts_N, adapters_N = torch.zeros(3, size, dtype=torch.long, device=device)
            self._buffers[size] = (x_ND, after_ND, positions_N, starts_N, adapters_N)
        return self._buffers[size]


def _padded(next_TD: Tensor | None, piece_TD: Tensor) -> Tensor:
    """The embeddings with zeros up to the length of the piece; zeros for None."""
    if next_TD is None:
        return torch.zeros_like(piece_TD)
    return pad(next_TD, (0, 0, 0, len(piece_TD) - len(next_TD)))


def _token_slots(states_N: Sequence[Tensor], span: int, adapted: bool) -> TokenSlots:
    positions_N, starts_N, adapters_N = states_N
    return TokenSlots(positions_N, starts_N, span, prefill=True, adapters_N=adapters_N if adapted else None)
