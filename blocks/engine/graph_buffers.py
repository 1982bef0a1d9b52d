"""The static tensors of a captured generation, and the recordings of its steps.

N sequences, R rows (N, or 2 N with guidance: rows 2 n and 2 n + 1), S cache slots, D decoder width, T prompt
positions, V vocabulary. Sequences beyond those of a batch are computed and never looked at; they start at
position 0, where they cost least.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..model.decoder import Decoder
from ..model.kv_cache import allocated_slots
from ..model.kv_slots import KVSlotView
from .cuda_graphs import GraphCapturer, Work
from .generate import GenerationBatch, prefill
from .recordings import CapturedGraphs, Decoding
from .sampling import SamplingMode, SamplingTensors, TokenHead, choose, filtered, spread

_PROMPTS = (32, 64, 128)
"""Lengths that short prompts are padded to, longer ones to multiples of the last: launching the reading of
one takes longer than the reading."""
_PROMPT_POSITIONS = 4096
"""Positions of all rows up to which prompts are read by a recording. More keep the device busy for longer
than launching takes; and a recording keeps the memory of its activations, as much as it takes to read so many
positions at once, which is also how prompts without a `prefill_chunk` are read."""


class GraphBuffers:
    """Works on one batch at a time: `begin`, then `step` for each token."""

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
        self.tensors, self.one = SamplingTensors(*self.numbers[:4].split(1)), self.numbers[4:]
        self.seen_NV: Tensor | None = None
        self.decoding = Decoding(decoder, slots)
        # Prompts of any length, [R, T, D] from its beginning, for all recordings of their reading.
        positions = min(rows * allocated_slots(slots), _PROMPT_POSITIONS)
        self._prompts_PD = self.hidden_RD.new_zeros(positions, self.hidden_RD.shape[1])
        self._met: set[int] = set()
        """Lengths, of those that are not recorded at once, that came before."""
        self._recordings = CapturedGraphs(capturer)
        self._longest = 0

    @property
    def bytes(self) -> int:
        seen = [] if self.seen_NV is None else [self.seen_NV]
        tensors = [*self.cache.buffers, self._prompts_PD, *self.decoding.rotary, self.record_SN, *seen]
        return sum(tensor.numel() * tensor.itemsize for tensor in tensors)

    def begin(self, decoder: Decoder, batch: GenerationBatch) -> None:
        """Read the prompts and set everything to the first step."""
        count, rows, device = len(batch.seeds), len(batch.rows), self.hidden_RD.device
        self.steps_N.zero_()
        self.seeds_N.zero_()
        self.seeds_N[:count] = torch.tensor(batch.seeds, dtype=torch.long).to(device)
        self.numbers[:4] = torch.tensor(batch.choosing.tensors, dtype=torch.float32).to(device)
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
            self._read(decoder, batch.rows, length)

    def rewind(self, lengths: Sequence[int]) -> None:
        """Back to the first step after prompts of these lengths, for measuring steps again and again."""
        self.cache.positions[: len(lengths)] = torch.tensor(lengths).to(self.cache.positions.device)
        self.steps_N.zero_()

    def _prompt_length(self, decoder: Decoder, batch: GenerationBatch) -> int | None:
        """What prompts are padded to where reading them is recorded, else None. A long prompt is not the
        first time: its length may never come again, and recording takes longer than launching once."""
        most = _PROMPTS[-1]
        length = next((few for few in _PROMPTS if few >= batch.longest), -(-batch.longest // most) * most)
        if length > self.slots or len(self.hidden_RD) * length > _PROMPT_POSITIONS:
            return None
        if batch.prefill_chunk is not None and batch.prefill_chunk < length:
            return None
        # Long inputs of experts ask the device for their numbers, but in one dtype.
        asks = decoder.config.moe is not None and self.hidden_RD.dtype != torch.bfloat16
        if asks and self.hidden_RD.device.type == "cuda":
            return None
        if length > most and length not in self._met:
            self._met.add(length)
            return None
        return length

    def _read(self, decoder: Decoder, rows: Sequence[Tensor], length: int) -> None:
        """Prompts through their recording. What stands behind a prompt is overwritten before it is seen."""
        x_RTD = self._prompts_PD[: len(self.hidden_RD) * length].unflatten(0, (-1, length))
        padded = pad_sequence(list(rows), batch_first=True)
        x_RTD[: len(rows), : padded.shape[1]] = padded
        lengths = [len(row) for row in rows] + [0] * (len(x_RTD) - len(rows))
        self.lengths_R.copy_(torch.tensor(lengths))

        def work() -> None:
            self.cache.positions.zero_()
            self.cache.filled = length
            hidden_RTD = decoder(x_RTD, self.cache, begins=True)
            self.hidden_RD.copy_(hidden_RTD[self.cache.rows, (self.lengths_R - 1).clamp(min=0)])
            self.cache.positions.copy_(self.lengths_R)

        self._run(decoder, ("prompt", length), work)

    def step(self, decoder: Decoder, head: TokenHead, mode: SamplingMode, number: int) -> None:
        """Choose the tokens of step `number`, which go into its row of `record_SN`, and run the decoder."""
        span = self.decoding.span(self._longest + number + 1)

        def work() -> None:
            self._choose(head.logits(self.hidden_RD), mode)
            self._advance(decoder, spread(head.embed(self.tokens_N), mode), span)

        names = tuple(getattr(part, "__qualname__", "") for part in (head.embed, head.logits))
        self._run(decoder, (names, mode, span), work)

    def _choose(self, logits_RV: Tensor, mode: SamplingMode) -> None:
        seen = self.seen_NV if mode.penalized else None
        kernels = self.decoding.kernels
        if kernels is None:
            tokens = choose(logits_RV, mode, self.tensors, self.seeds_N, self.steps_N, seen)
            self.tokens_N.copy_(tokens)
            self.record_SN.index_copy_(0, self.steps_N[:1], tokens[None])
            self.steps_N += 1
            return
        guidance, temperature = self.tensors.guidance, self.tensors.temperature
        if mode.top_k or mode.nucleus or mode.penalized:
            logits_RV, temperature = filtered(logits_RV, mode, self.tensors, seen), self.one
            guidance = None
        kernels.draw.draw(
            logits_RV,
            self.seeds_N,
            self.steps_N,
            self.tokens_N,
            self.record_SN,
            guidance=guidance if mode.guided else None,
            temperature=None if mode.greedy else temperature,
        )
        if seen is not None:
            seen.scatter_(1, self.tokens_N[:, None], True)

    def _advance(self, decoder: Decoder, x_RD: Tensor, span: int) -> None:
        self.decoding.step(decoder, x_RD, self.cache, span, self.hidden_RD)
        self.cache.positions += 1

    def _run(self, decoder: Decoder, key: object, work: Work) -> None:
        changed = [self.hidden_RD, self.cache.positions, self.steps_N, self.tokens_N]
        changed += [] if self.seen_NV is None else [self.seen_NV]
        self._recordings.run(decoder, key, work, changed)
