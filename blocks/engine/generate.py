"""The generation loop: prefill, then one position of every row a step.

B rows, N sequences (of one row, or two with guidance), T positions, D decoder width, V vocabulary. Rows may
differ in length and still give what each gives alone (see `KVCache`). Embedding, head and choice are passed
in, so that text, image tokens and both families share the loop.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import PromptError
from ..model.decoder import Decoder
from ..model.kv_cache import KVCache
from .sampling import Choosing, TokenHead, choose, spread


def check_context(prompt: int, new: int, limit: int) -> None:
    """Refuse a prompt that leaves no room for what is to come, saying what would fit."""
    if prompt + new > limit:
        raise PromptError(
            f"the prompt takes {prompt} tokens and {new} more are asked for, but the context holds {limit}; "
            + (f"at most {limit - prompt} new tokens fit" if prompt < limit else "shorten the prompt")
        )


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
        place_B = lengths - 1 - start
        found_BD = hidden_BTD[cache.rows, place_B.clamp(0, length - 1)]
        last_BD = torch.where(((place_B >= 0) & (place_B < length))[:, None], found_BD, last_BD)
        cache.positions += length
    cache.positions.copy_(lengths)
    return last_BD


def decode_one(decoder: Decoder, x_BD: Tensor, cache: KVCache) -> Tensor:
    """Run one position of every row, written at the row's own place; hidden states `[B, D]`."""
    cache.reserve(cache.filled + 1)
    hidden = decoder(x_BD[:, None], cache)[:, 0]
    cache.positions += 1
    return hidden


@dataclass(frozen=True)
class GenerationBatch:
    """What is to be generated: `max_new_tokens` for each of N sequences.

    `rows` are the prompts' embeddings, each `[T_i, D]`: one a sequence, or with guidance two, with and
    without the condition. `seen`, bool `[N, V]`, marks what a penalty counts as said before; it stays as it
    is. `prefill_chunk` bounds the positions of prompts that are computed at once.
    """

    rows: Sequence[Tensor]
    head: TokenHead
    choosing: Choosing
    seeds: Sequence[int]
    max_new_tokens: int
    seen: Tensor | None = None
    prefill_chunk: int | None = None

    def __post_init__(self) -> None:
        assert len(self.rows) == self.choosing.rows_each * len(self.seeds)
        assert (self.seen is not None) == self.choosing.mode.penalized

    @property
    def longest(self) -> int:
        return max(len(row) for row in self.rows)


def generate(decoder: Decoder, batch: GenerationBatch) -> Iterator[Tensor]:
    """Yield the tokens `[N]` of one step after the other, until all are there or the caller stops.

    On CUDA the steps are captured (`captures`); their tokens are then on the host.
    """
    check_context(batch.longest, batch.max_new_tokens, decoder.config.max_positions)
    if captures(decoder, batch.head):
        from .graph_generation import captured_steps

        yield from captured_steps(decoder, batch)
    else:
        yield from plain_steps(decoder, batch)


def generate_all(decoder: Decoder, batch: GenerationBatch) -> Tensor:
    """All tokens at once, int64 `[N, max_new_tokens]` on the host: `generate` without a look in between."""
    if not captures(decoder, batch.head):
        return torch.stack(list(generate(decoder, batch)), dim=1).cpu()
    from .graph_generation import captured_tokens

    check_context(batch.longest, batch.max_new_tokens, decoder.config.max_positions)
    return captured_tokens(decoder, batch)


def captures(decoder: Decoder, head: TokenHead) -> bool:
    """Whether steps are captured: where graphs are, of a model's own head, unless it is told not to."""
    return head.owner is not None and records(decoder)


def records(decoder: Decoder) -> bool:
    """Whether a decoder's work, and that of what its model puts before it, is recorded."""
    device = decoder.device
    if decoder.layout is not None:  # weights that move have no place that a recording could name
        return False
    if decoder.capture is False or device.type != "cuda":
        return False
    return not torch.is_autocast_enabled(device.type)


def plain_steps(decoder: Decoder, batch: GenerationBatch) -> Iterator[Tensor]:
    """The definition of `generate`: every operation of every step is launched by itself."""
    device, choosing, head = batch.rows[0].device, batch.choosing, batch.head
    mode, seen = choosing.mode, None if batch.seen is None else batch.seen.clone()
    seeds_N = torch.tensor(batch.seeds, dtype=torch.long, device=device)
    cache = decoder.new_cache(len(batch.rows), batch.longest + batch.max_new_tokens)
    hidden = prefill(decoder, batch.rows, cache, batch.prefill_chunk)
    for step in range(batch.max_new_tokens):
        steps_N = torch.full_like(seeds_N, step)
        tokens = choose(head.logits(hidden), mode, choosing.tensors, seeds_N, steps_N, seen)
        yield tokens
        if step + 1 < batch.max_new_tokens:
            hidden = decode_one(decoder, spread(head.embed(tokens), mode), cache)
