"""Generation of a fixed batch: `plain_steps` is the definition, CUDA graphs give the same tokens faster.

N sequences, each one decoder row, or two with guidance. Prompts may differ in length; each sequence gets the
tokens that it would get alone (see `KVCache`). The token head is an argument, so text and image tokens of
both families share the loop.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..graphs.cuda_graphs import uses_cuda_graphs
from ..model.decoder import Decoder
from .graph_generation import captured_steps, captured_tokens
from .prefill import decode_one, prefill
from .request import GenerationBatch, TokenHead, check_context
from .sampling import expand_rows, sample


def generate(decoder: Decoder, batch: GenerationBatch) -> Iterator[Tensor]:
    """Yield the tokens `[N]` of each step, until all are generated or the caller stops.

    With CUDA graphs (`captures`) the tokens are on the host, else on the decoder's device. Raises
    `PromptError` if prompt and new tokens exceed the context.
    """
    check_context(batch.longest, batch.max_new_tokens, decoder.config.max_positions)
    yield from (captured_steps if captures(decoder, batch.head) else plain_steps)(decoder, batch)


def generate_all(decoder: Decoder, batch: GenerationBatch) -> Tensor:
    """All tokens at once, int64 `[N, max_new_tokens]` on the host, without synchronizing between steps."""
    if not captures(decoder, batch.head):
        return torch.stack(list(generate(decoder, batch)), dim=1).cpu()
    check_context(batch.longest, batch.max_new_tokens, decoder.config.max_positions)
    return captured_tokens(decoder, batch)


def captures(decoder: Decoder, head: TokenHead) -> bool:
    """Whether generation with this head runs as CUDA graphs: the decoder's steps must, and the head must
    belong to a model."""
    return head.owner is not None and uses_cuda_graphs(decoder)


def plain_steps(decoder: Decoder, batch: GenerationBatch) -> Iterator[Tensor]:
    """The definition of `generate`, in eager mode: prefill, then one position of every row per step."""
    device, head = batch.rows[0].device, batch.head
    mode, tensors = batch.sampling.mode, batch.sampling.tensors
    seen = None if batch.seen is None else batch.seen.clone()
    seeds_N = torch.tensor(batch.seeds, dtype=torch.long, device=device)
    cache = decoder.new_cache(len(batch.rows), batch.longest + batch.max_new_tokens)
    hidden = prefill(decoder, batch.rows, cache, batch.prefill_chunk)
    for step in range(batch.max_new_tokens):
        steps_N = torch.full_like(seeds_N, step)
        tokens = sample(head.logits(hidden), mode, tensors, seeds_N, steps_N, seen)
        yield tokens
        if step + 1 < batch.max_new_tokens:
            hidden = decode_one(decoder, expand_rows(head.embed(tokens), mode), cache)
