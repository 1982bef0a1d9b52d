"""Generation for pipelines, which run the steps of their decoder's scheduler themselves."""

import threading
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ..device import inference_on
from ..model.decoder import Decoder
from ..sampling.request import Request, SampledToken, SamplingParams, TokenHead
from ..speculate import Speculate
from ..token_masks import OutputMatcher
from .scheduler import Scheduler

_lock = threading.Lock()


def scheduler_of(decoder: Decoder) -> Scheduler:
    """The scheduler that all pipelines of a decoder share; a new one once the decoder has moved."""
    decoder = decoder.base or decoder
    with _lock, inference_on(decoder.device):
        if decoder.scheduler is None or not decoder.scheduler.is_current:
            decoder.scheduler = Scheduler(decoder)
        return decoder.scheduler


def _append(tokens: list[int], sampled: SampledToken) -> None:
    tokens.append(sampled.token)


class Sequences:
    """Sequences to generate together, and their tokens so far."""

    def __init__(
        self,
        head: TokenHead,
        prompts_TD: Sequence[Sequence[Tensor]],
        sampling: SamplingParams,
        seeds: Sequence[int],
        max_new_tokens: int,
        *,
        eos_id: int | None = None,
        prefill_chunk: int | None = None,
        prompt_ids: Sequence[Tensor] | None = None,
        priority: int = 0,
        matchers: Sequence[OutputMatcher] | None = None,
        speculate: Speculate = "auto",
    ) -> None:
        """`prompts_TD` holds one prompt of each sequence, or with guidance two; `prompt_ids` the prompts'
        tokens for a repetition penalty; `matchers` one of each sequence. The other arguments are those of
        `Request`."""
        self.tokens: list[list[int]] = [[] for _ in seeds]
        self.requests = [
            Request(
                head,
                prompts,
                sampling,
                seed,
                max_new_tokens,
                partial(_append, tokens),
                lambda reason: None,
                eos_id,
                priority=priority,
                seen_ids=None if prompt_ids is None else prompt_ids[index],
                prefill_chunk=prefill_chunk,
                matcher=None if matchers is None else matchers[index],
                speculate=speculate,
            )
            for index, (prompts, seed, tokens) in enumerate(zip(prompts_TD, seeds, self.tokens, strict=True))
        ]

    def run(self, decoder: Decoder) -> Iterator[list[int | None]]:
        """Yield the next token of every sequence, or None for one that has ended, until all have.

        Raises what a sequence's computation raised, and `PromptError` for too long a prompt. If the caller
        stops early, the sequences end.
        """
        scheduler = scheduler_of(decoder)
        for request in self.requests:
            request.decoder = decoder
        scheduler.submit(self.requests)
        try:
            step, pairs = 0, list(zip(self.tokens, self.requests, strict=True))
            while True:
                while not all(len(tokens) > step or one.ended for tokens, one in pairs):
                    scheduler.step()
                for request in self.requests:
                    if request.error is not None:
                        raise request.error
                tokens = [tokens[step] if len(tokens) > step else None for tokens in self.tokens]
                if all(token is None for token in tokens):
                    return
                yield tokens
                step += 1
        finally:
            scheduler.cancel(self.requests)

    def run_all(self, decoder: Decoder) -> Tensor:
        """All tokens at once, int64 `[N, max_new_tokens]` on the CPU, for sequences without an end token."""
        for _ in self.run(decoder):
            pass
        return torch.tensor(self.tokens)
