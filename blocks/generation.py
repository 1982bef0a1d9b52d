"""The generation loop: prefill, then one position of every row a step.

B rows, T positions, D decoder width, V vocabulary. Rows may differ in length and still give what each
gives alone (see `KVCache`). Embedding, head and choice are passed in, so that text, image tokens and
both families share the loop.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .decoder import Decoder
from .errors import PromptError
from .kv_cache import KVCache


def check_context(prompt: int, new: int, limit: int) -> None:
    """Refuse a prompt that leaves no room for what is to come, saying what would fit."""
    if prompt + new > limit:
        raise PromptError(
            f"the prompt takes {prompt} tokens and {new} more are asked for, but the context holds {limit}; "
            + (f"at most {limit - prompt} new tokens fit" if prompt < limit else "shorten the prompt")
        )


def prefill(
    decoder: Decoder, rows: Sequence[Tensor], cache: KVCache, chunk: int | None = None
) -> Tensor:
    """Run whole prompts, each `[T_i, D]`, into an empty cache; hidden states of the last positions `[B, D]`.

    With `chunk`, at most so many positions of each row at a time, which bounds the memory of activations;
    the result is the same.
    """
    device = cache.positions.device
    lengths = torch.tensor([len(row) for row in rows], device=device)
    x_BTD = pad_sequence(list(rows), batch_first=True)
    last_BD = x_BTD.new_zeros(len(rows), x_BTD.shape[-1])
    for start in range(0, x_BTD.shape[1], chunk or x_BTD.shape[1]):
        part_BTD = x_BTD[:, start : start + chunk] if chunk else x_BTD
        length = part_BTD.shape[1]
        cache.reserve(start + length)
        hidden_BTD = decoder(part_BTD, cache)
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


def generate(
    decoder: Decoder,
    rows: Sequence[Tensor],
    choose: Callable[[Tensor, int], Tensor],
    embed: Callable[[Tensor], Tensor],
    max_new_tokens: int,
    prefill_chunk: int | None = None,
) -> Iterator[Tensor]:
    """Yield the tokens `[B]` of one step after the other, `max_new_tokens` times or until the caller stops.

    `choose(hidden [B, D], step)` picks tokens (head, guidance, sampling); `embed(tokens [B])` gives the
    next inputs `[B, D]`. `prefill_chunk` bounds the positions that are computed at once.
    """
    longest = max(len(row) for row in rows)
    check_context(longest, max_new_tokens, decoder.config.max_positions)
    cache = decoder.config.new_cache(
        len(rows), longest + max_new_tokens, device=rows[0].device, dtype=rows[0].dtype
    )
    hidden = prefill(decoder, rows, cache, prefill_chunk)
    for step in range(max_new_tokens):
        tokens = choose(hidden, step)
        yield tokens
        if step + 1 < max_new_tokens:
            hidden = decode_one(decoder, embed(tokens), cache)
