"""Answering: embedded conversations to text, for any family whose model has a decoder and a text head.

B conversations, T prompt tokens, A answer tokens, D decoder width, V vocabulary.
"""

import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...tokenizers.text import StreamDecoder, TextTokenizer
from ..engine.generate import GenerationBatch, check_context, generate, prefill
from ..engine.sampling import Choosing, TokenHead
from ..engine.sampling_params import Sampling, check_integer, check_number
from ..errors import OptionError
from ..model.decoder import Decoder

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class TextGenerationOptions:
    """How an answer is written; `temperature=0` is greedy, `repetition_penalty=1` changes nothing."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_integer("max_new_tokens", self.max_new_tokens, low=1)
        _ = self.sampling
        if check_number("repetition_penalty", self.repetition_penalty, low=0.0, high=math.inf) == 0.0:
            raise OptionError("repetition_penalty is 0; accepted: above 0 (1 changes nothing)")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, 0, self.top_p)


def resolve_seed(seed: int | None) -> int:
    """The seed of an answer: the given one, checked, or a fresh random one."""
    return secrets.randbelow(2**32) if seed is None else check_integer("seed", seed, 0, MAX_SEED)


class ChatModel(Protocol):
    """What answering needs of a model."""

    @property
    def decoder(self) -> Decoder: ...

    def embed_text(self, ids: Tensor) -> Tensor:
        """Text ids `[...]` -> embeddings `[..., D]`."""
        ...

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., D]` -> logits `[..., V]`."""
        ...


@dataclass(frozen=True)
class Prompt:
    """One conversation: its ids `[T]` (the marks of pictures included) and its embeddings `[T, D]`."""

    ids: Tensor
    embeddings_TD: Tensor

    def __len__(self) -> int:
        return len(self.embeddings_TD)


@torch.no_grad()
def generate_tokens(
    model: ChatModel,
    prompts: Sequence[Prompt],
    options: TextGenerationOptions,
    seeds: Sequence[int],
    eos_id: int,
    prefill_chunk: int | None = None,
) -> Iterator[list[int | None]]:
    """Yield the next token of every conversation, None for those that have ended, until all have."""
    device = prompts[0].embeddings_TD.device
    seen_BV = None
    if options.repetition_penalty != 1.0:
        vocabulary = model.decoder.config.vocab_size
        seen_BV = torch.zeros(len(prompts), vocabulary, dtype=torch.bool, device=device)
        for row, prompt in enumerate(prompts):
            seen_BV[row, prompt.ids.to(device)] = True
    batch = GenerationBatch(
        rows=[prompt.embeddings_TD for prompt in prompts],
        head=TokenHead(model.embed_text, model.text_logits),
        choosing=Choosing(options.sampling, repetition_penalty=options.repetition_penalty),
        seeds=seeds,
        max_new_tokens=options.max_new_tokens,
        seen=seen_BV,
        prefill_chunk=prefill_chunk,
    )
    ended = [False] * len(prompts)
    for tokens in generate(model.decoder, batch):
        step: list[int | None] = []
        for row, token in enumerate(tokens.tolist()):
            ended[row] = ended[row] or token == eos_id
            step.append(None if ended[row] else token)
        if all(ended):
            return
        yield step


def generate_ids(
    model: ChatModel,
    prompts: Sequence[Prompt],
    options: TextGenerationOptions,
    seeds: Sequence[int],
    eos_id: int,
    prefill_chunk: int | None = None,
) -> list[list[int]]:
    """The tokens of the whole answer to each conversation, without the end token."""
    ids: list[list[int]] = [[] for _ in prompts]
    for step in generate_tokens(model, prompts, options, seeds, eos_id, prefill_chunk):
        for row, token in zip(ids, step, strict=True):
            if token is not None:
                row.append(token)
    return ids


def generate_texts(
    model: ChatModel,
    tokenizer: TextTokenizer,
    prompts: Sequence[Prompt],
    options: TextGenerationOptions,
    seeds: Sequence[int],
    *,
    skip_special_tokens: bool = True,
    prefill_chunk: int | None = None,
) -> list[str]:
    """The whole answer to each conversation, stripped of the space that the template leaves to it."""
    ids = generate_ids(model, prompts, options, seeds, tokenizer.eos_id, prefill_chunk)
    return [tokenizer.decode(row, skip_special_tokens).strip() for row in ids]


def stream_text(
    model: ChatModel,
    tokenizer: TextTokenizer,
    prompt: Prompt,
    options: TextGenerationOptions,
    seed: int,
    *,
    skip_special_tokens: bool = True,
    prefill_chunk: int | None = None,
) -> Iterator[str]:
    """Pieces of one answer as they are written; joined, what `generate_texts` returns, bar its last strip."""
    decoder, started = StreamDecoder(tokenizer, skip_special_tokens), False
    steps = generate_tokens(model, [prompt], options, [seed], tokenizer.eos_id, prefill_chunk)
    pieces = (decoder.push(step[0]) for step in steps if step[0] is not None)
    for source in (pieces, (decoder.flush() for _ in range(1))):
        for piece in source:
            piece = piece if started else piece.lstrip()
            started = started or bool(piece)
            if piece:
                yield piece


@torch.no_grad()
def next_token_logits(model: ChatModel, prompt: Prompt, prefill_chunk: int | None = None) -> Tensor:
    """Logits of the text head at the last prompt position, float32 `[V]` on the CPU."""
    row = prompt.embeddings_TD
    check_context(len(prompt), 0, model.decoder.config.max_positions)
    if prefill_chunk is None:
        hidden = model.decoder(row[None])[0, -1]
    else:
        cache = model.decoder.new_cache(1, len(row))
        hidden = prefill(model.decoder, [row], cache, prefill_chunk)[0]
    return model.text_logits(hidden).float().cpu()


@torch.no_grad()
def score_answer_ids(model: ChatModel, prompt: Prompt, answer_A: Tensor) -> Tensor:
    """Log-probability of each answer token after the prompt, float32 `[A]` on the CPU."""
    row = prompt.embeddings_TD
    answer = answer_A.to(row.device)
    check_context(len(prompt), len(answer), model.decoder.config.max_positions)
    inputs = torch.cat((row, model.embed_text(answer[:-1])))
    hidden = model.decoder(inputs[None])[0, len(prompt) - 1 :]
    scores = model.text_logits(hidden).float().log_softmax(-1)
    return scores.gather(1, answer[:, None])[:, 0].cpu()
