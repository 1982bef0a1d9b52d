"""The static tensors that captured prefills and steps read and write, with their graphs.

N sequences, R rows (N, or 2 N with guidance: rows 2 n and 2 n + 1), S cache slots, D decoder width, T prompt
positions, V vocabulary, n rows in use, P prompt positions of all rows. Batches are padded to a bucket size;
padding sequences are computed and ignored, from position 0 on, where they cost least.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..graphs.cuda_graphs import CapturedGraphs, GraphCapturer, WeightAddresses, Work, bucket
from ..graphs.decode_step import StaticDecodeStep
from ..model.decoder import Decoder
from ..model.kv_cache import allocated_slots
from ..model.kv_slots import KVSlots, KVSlotView
from .prefill import prefill
from .request import GenerationBatch, SamplingMode, SamplingTensors, TokenHead
from .sampling import expand_rows, sample

_PROMPT_LENGTHS = (32, 64, 128)
"""Prompt lengths for which prefill is captured; longer prompts are padded to multiples of the last. The
prefill of a short prompt takes longer to launch than to compute."""
_MAX_PROMPT_POSITIONS = 4096
"""Most positions of all rows for which prefill is captured. More keep the device busy for longer than
launching takes, and a graph holds the memory of its activations."""


class GraphBuffers:
    """Buffers and graphs for batches of up to `count` sequences, one at a time: `begin`, then `step` for each
    token."""

    def __init__(
        self, decoder: Decoder, count: int, rows_each: int, slots: int, capturer: GraphCapturer
    ) -> None:
        weight = decoder.embed_tokens.weight
        device, rows = weight.device, count * rows_each
        self.count, self.rows_each, self.slots = count, rows_each, slots
        self.cache = decoder.new_cache(rows, slots)
        self.hidden_RD = torch.zeros(rows, decoder.config.hidden_size, device=device, dtype=weight.dtype)
        self.lengths_R = torch.zeros(rows, dtype=torch.long, device=device)
        self.tokens_N, self.steps_N, self.seeds_N = torch.zeros(3, count, dtype=torch.long, device=device)
        self.record_SN = torch.zeros(slots, count, dtype=torch.long, device=device)
        self.numbers = torch.ones(5, device=device)
        self.tensors = SamplingTensors(*self.numbers.split(1))
        self.seen_NV: Tensor | None = None
        self.decoding = StaticDecodeStep(decoder, slots)
        # Flat storage for prompts: the graph of each length uses its start as [R, T, D].
        positions = min(rows * allocated_slots(slots), _MAX_PROMPT_POSITIONS)
        self._prompts_PD = self.hidden_RD.new_zeros(positions, self.hidden_RD.shape[1])
        self._seen_lengths: set[int] = set()
        self._graphs = CapturedGraphs(capturer)
        self._longest = 0

    @property
    def bytes(self) -> int:
        """Memory of the buffers, not counting that of the graphs."""
        seen = [] if self.seen_NV is None else [self.seen_NV]
        tensors = [*self.cache.buffers, self._prompts_PD, *self.decoding.rotary, self.record_SN, *seen]
        return sum(tensor.numel() * tensor.itemsize for tensor in tensors)

    @property
    def captured_prompt_lengths(self) -> list[int]:
        """Prompt lengths whose prefill is captured, least recently used first."""
        return [key[1] for key in self._graphs.keys if isinstance(key, tuple) and key[0] == "prompt"]

    def begin(self, decoder: Decoder, batch: GenerationBatch) -> None:
        """Prefill the prompts and reset all state to the first step."""
        count, rows, device = len(batch.seeds), len(batch.rows), self.hidden_RD.device
        self.steps_N.zero_()
        self.seeds_N.zero_()
        self.seeds_N[:count] = torch.tensor(batch.seeds, dtype=torch.long).to(device)
        self.numbers[:] = torch.tensor(batch.sampling.tensors, dtype=torch.float32).to(device)
        if batch.seen is not None:
            seen = self.seen_NV
            if seen is None:
                self.seen_NV = seen = batch.seen.new_zeros(self.count, batch.seen.shape[1])
            seen.zero_()
            seen[:count] = batch.seen
        self._longest = batch.longest
        if (length := self._prompt_length(decoder, batch)) is None:
            self.cache.positions.zero_()
            view = KVSlotView(self.cache, 0, rows, 0)
            hidden = prefill(decoder, batch.rows, view, batch.prefill_chunk)
            self.hidden_RD.zero_()
            self.hidden_RD[:rows] = hidden
        else:
            self.captured_prefill(decoder, batch.rows, length)

    def rewind(self, lengths: Sequence[int]) -> None:
        """Return to the first step after prompts of these lengths, for timing steps repeatedly."""
        self.cache.positions[: len(lengths)] = torch.tensor(lengths).to(self.cache.positions.device)
        self.steps_N.zero_()

    def _prompt_length(self, decoder: Decoder, batch: GenerationBatch) -> int | None:
        """The length to pad prompts to for captured prefill; None for eager prefill.

        Beyond `_PROMPT_LENGTHS`, a length is captured on its second use: it may never come again.
        """
        longest = _PROMPT_LENGTHS[-1]
        multiple = -(-batch.longest // longest) * longest
        length = next((short for short in _PROMPT_LENGTHS if short >= batch.longest), multiple)
        if length > self.slots or len(self.hidden_RD) * length > _MAX_PROMPT_POSITIONS:
            return None
        if batch.prefill_chunk is not None and batch.prefill_chunk < length:
            return None
        # Experts with many tokens read token counts from the device, except in bfloat16.
        synchronizes = decoder.config.moe is not None and self.hidden_RD.dtype != torch.bfloat16
        if synchronizes and self.hidden_RD.device.type == "cuda":
            return None
        if length > longest and length not in self._seen_lengths:
            self._seen_lengths.add(length)
            return None
        return length

    def captured_prefill(self, decoder: Decoder, rows: Sequence[Tensor], length: int) -> None:
        """Prefill prompts, each `[T_i, D]`, by a graph, padded to `length`. What padding writes to the cache
        is overwritten before it is read."""
        x_RTD = self._prompts_PD[: len(self.hidden_RD) * length].unflatten(0, (-1, length))
        padded = pad_sequence(list(rows), batch_first=True)
        x_RTD[: len(rows), : padded.shape[1]] = padded
        lengths = [len(row) for row in rows] + [0] * (len(x_RTD) - len(rows))
        self.lengths_R.copy_(torch.tensor(lengths))

        def work() -> None:
            self.cache.positions.zero_()
            self.cache.filled = length
            hidden_RTD = decoder(x_RTD, self.cache, from_start=True)
            self.hidden_RD.copy_(hidden_RTD[self.cache.rows, (self.lengths_R - 1).clamp(min=0)])
            self.cache.positions.copy_(self.lengths_R)

        self._run(decoder, ("prompt", length), work)

    def step(self, decoder: Decoder, head: TokenHead, mode: SamplingMode, number: int) -> None:
        """Sample the tokens of step `number`, record them in `record_SN`, embed them and run the decoder."""
        span = self.decoding.span(self._longest + number + 1)

        def work() -> None:
            sample(
                head.logits(self.hidden_RD),
                mode,
                self.tensors,
                self.seeds_N,
                self.steps_N,
                self.seen_NV if mode.penalized else None,
                kernel=self.decoding.sampling_kernel,
                tokens_N=self.tokens_N,
                record_SN=self.record_SN,
            )
            x_RD = expand_rows(head.embed(self.tokens_N), mode)
            self.decoding.run(decoder, x_RD, self.cache, span, self.hidden_RD)
            self.cache.positions += 1

        names = tuple(getattr(method, "__qualname__", "") for method in (head.embed, head.logits))
        self._run(decoder, (names, mode, span), work)

    def _run(self, decoder: Decoder, key: object, work: Work) -> None:
        changed = [self.hidden_RD, self.cache.positions, self.steps_N, self.tokens_N]
        changed += [] if self.seen_NV is None else [self.seen_NV]
        self._graphs.run(decoder, key, work, changed)


class GraphedSteps:
    """`decode_one` over a scheduler's rows as CUDA graphs, one per bucket of rows in use.

    Free rows are the padding up to a bucket (`KVSlots.position_free_rows`). The scheduler needs a capturer of
    its own: graphs of one capturer must not run at the same time, and `generate` runs on other threads.
    """

    def __init__(self, decoder: Decoder, slots: KVSlots, capturer: GraphCapturer) -> None:
        self.decoder, self.slots, self.capturer = decoder, slots, capturer
        self.decoding = StaticDecodeStep(decoder, slots.cache.slots)
        self._graphs, self._addresses = CapturedGraphs(capturer), WeightAddresses()
        self._x_RD = torch.zeros_like(slots.hidden_RD)

    def begin(self) -> None:
        """Drop the graphs if weights were moved; called whenever requests are admitted."""
        if self._addresses.moved(self.decoder, decoder=self.decoder):
            self._graphs.clear()

    def run(self, x_nD: Tensor) -> None:
        """Run one position of every row in use; hidden states go into `slots.hidden_RD`."""
        slots, used = self.slots, len(self.slots.lengths)
        rows = min(bucket(used), slots.rows)
        span = self.decoding.span(max(slots.lengths) + 1)
        slots.position_free_rows(rows)
        x_RD, hidden_RD = self._x_RD[:rows], slots.hidden_RD[:rows]
        x_RD[:used] = x_nD

        def work() -> None:
            self.decoding.run(self.decoder, x_RD, slots.view(0, rows, 0), span, hidden_RD)

        self._graphs.run(self.decoder, (rows, span), work)
        slots.cache.positions[:used] += 1
