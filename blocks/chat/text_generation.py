"""Text generation from embedded conversations, for any family whose model has a decoder and a text head.

B conversations, T prompt tokens, A answer tokens, D decoder width, V vocabulary.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, Self, TypedDict, TypeVar

import torch
from torch import Tensor

from ...tokenizers.text import StreamDecoder, TextTokenizer
from ..device import check_finite, upload
from ..drafts import LookupDrafts
from ..engine.generate import Sequences
from ..engine.prefill import prefill
from ..errors import OptionError, as_python_numbers, check_integer
from ..image_prompts import MAX_SEED
from ..model.decoder import Decoder
from ..sampling.request import SamplingParams, TokenHead, check_context
from ..speculate import Speculate, check_speculate
from ..structured_output import OutputFormat
from ..token_masks import TokenVocabulary


@dataclass(frozen=True)
class TextGenerationOptions:
    """How a text is generated.

    `temperature=0` is greedy. A `repetition_penalty` above 1 makes tokens that occurred before, prompt
    included, less likely; 1 is none. `SamplingParams` describes the others. `prefill_chunk` limits the prompt
    positions that are computed at once (None: all), which saves memory and changes nothing else.
    `output_format` is what the answer must match, which it does unless `max_new_tokens` cut it off. Raises
    `OptionError`.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    prefill_chunk: int | None = None
    output_format: OutputFormat | None = None
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    speculate: Speculate = "auto"

    def __post_init__(self) -> None:
        as_python_numbers(self)
        check_integer("max_new_tokens", self.max_new_tokens, low=1)
        _ = self.sampling
        check_prefill_chunk(self.prefill_chunk)
        check_speculate(self.speculate)
        if not isinstance(self.output_format, OutputFormat | None):
            raise OptionError(f"output_format is {self.output_format!r}; accepted: an OutputFormat, or None")

    @classmethod
    def of(
        cls, *limits: Any, json_schema: Any = None, choices: Any = None, regex: Any = None, **fields: Any
    ) -> Self:
        """Options; instead of an `output_format`, what `OutputFormat` makes one of."""
        if (picked := OutputFormat.pick(json_schema, choices, regex)) is not None:
            if fields.get("output_format") is not None:
                raise OptionError("an output_format excludes json_schema, choices and regex")
            fields["output_format"] = picked
        return cls(*limits, **fields)

    @property
    def sampling(self) -> SamplingParams:
        names = SamplingParams.__dataclass_fields__.keys() & self.__dataclass_fields__
        return SamplingParams(**{name: getattr(self, name) for name in names})


class MoreTextOptions(TypedDict, total=False):
    """The options of `ask` and `chat` that are given by name: fields of `TextGenerationOptions`, and what an
    output format is made of."""

    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    speculate: Speculate
    prefill_chunk: int | None
    output_format: OutputFormat | None
    json_schema: Any
    choices: Sequence[str] | None
    regex: str | None


def check_prefill_chunk(prefill_chunk: int | None) -> int | None:
    """The chunk size, checked to be at least 1, or None. Raises `OptionError`."""
    return None if prefill_chunk is None else check_integer("prefill_chunk", prefill_chunk, low=1)


def resolve_seed(seed: int | None) -> int:
    """The given seed, checked, or a random one for None. Raises `OptionError`."""
    return secrets.randbelow(2**32) if seed is None else check_integer("seed", seed, 0, MAX_SEED)


@dataclass(frozen=True)
class Prompt:
    """An embedded conversation: token ids `[T]`, image tokens included, and embeddings `[T, D]`.

    With `continues` the answer goes on right after the last word of an unfinished one.
    """

    ids: Tensor
    embeddings_TD: Tensor
    continues: bool = False

    def __len__(self) -> int:
        return len(self.embeddings_TD)


class PromptInputs(Protocol):
    """A conversation as the family's processor prepares it: `ids` int64 `[T]`, `image_mask` bool `[T]`, true
    at image tokens, and `continues` as in `Prompt`."""

    @property
    def ids(self) -> Tensor: ...

    @property
    def image_mask(self) -> Tensor: ...

    @property
    def continues(self) -> bool: ...


class ChatModel(Protocol):
    """The part of a model that text generation uses."""

    @property
    def decoder(self) -> Decoder: ...

    def embed_text(self, ids: Tensor) -> Tensor:
        """Text ids `[...]` -> embeddings `[..., D]`."""
        ...

    def embed_prompts(self, inputs: Sequence[Any]) -> list[Prompt]:
        """The embedded text and images of conversations, given as the family's processor prepares them."""
        ...

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., D]` -> logits `[..., V]`."""
        ...


def text_head(model: ChatModel) -> TokenHead:
    """The token head of texts; a model may have `drafts` of its own."""
    return TokenHead(model.embed_text, model.text_logits, getattr(model, "drafts", None) or LookupDrafts())


Inputs = TypeVar("Inputs", bound=PromptInputs)


@torch.no_grad()
def embed_conversations(
    model: ChatModel, inputs: Sequence[Inputs], embed_images: Callable[[Sequence[Inputs]], Tensor]
) -> list[Prompt]:
    """Conversations as prompts: the embeddings of their text, with those of images at the image tokens.

    `embed_images` gives the embeddings `[n, D]` of all images of some conversations, in order. It is called
    once for all on CUDA, and elsewhere for each: there a vision tower is not batch-invariant.
    """
    if model.decoder.device.type == "cuda" and inputs:
        return _embed_together(model, inputs, embed_images)
    return [prompt for one in inputs for prompt in _embed_together(model, [one], embed_images)]


def _embed_together(
    model: ChatModel, inputs: Sequence[Inputs], embed_images: Callable[[Sequence[Inputs]], Tensor]
) -> list[Prompt]:
    device = model.decoder.device
    x_TD = model.embed_text(upload(torch.cat([one.ids for one in inputs]), device))
    # `nonzero` on the host, as `upload`, avoids waiting for the device's queued steps.
    positions = torch.cat([one.image_mask for one in inputs]).nonzero()[:, 0]
    if len(positions):
        x_TD = x_TD.index_copy(0, upload(positions, device), embed_images(inputs))
    rows = x_TD.split([len(one.ids) for one in inputs])
    return [Prompt(one.ids, row_TD, one.continues) for one, row_TD in zip(inputs, rows, strict=True)]


def generate_tokens(
    model: ChatModel,
    prompts: Sequence[Prompt],
    options: TextGenerationOptions,
    seeds: Sequence[int],
    eos_id: int,
    vocabulary: TokenVocabulary | None = None,
) -> Iterator[list[int | None]]:
    """Yield the next token of every conversation, or None for one that has ended, until all have.

    An output format needs the `vocabulary`. Raises `OptionError` if it is too complex.
    """
    matchers = None
    if options.output_format is not None:
        assert vocabulary is not None
        matchers = [options.output_format.matcher(vocabulary, options.max_new_tokens) for _ in prompts]
    sequences = Sequences(
        text_head(model),
        [[prompt.embeddings_TD] for prompt in prompts],
        options.sampling,
        seeds,
        options.max_new_tokens,
        eos_id=eos_id,
        prefill_chunk=options.prefill_chunk,
        prompt_ids=[prompt.ids for prompt in prompts],
        matchers=matchers,
        speculate=options.speculate,
    )
    return sequences.run(model.decoder)


def generate_ids(
    model: ChatModel,
    prompts: Sequence[Prompt],
    options: TextGenerationOptions,
    seeds: Sequence[int],
    eos_id: int,
    vocabulary: TokenVocabulary | None = None,
) -> list[list[int]]:
    """The token ids of the answer to each conversation, without the end token."""
    ids: list[list[int]] = [[] for _ in prompts]
    for step in generate_tokens(model, prompts, options, seeds, eos_id, vocabulary):
        for row, token in zip(ids, step, strict=True):
            if token is not None:
                row.append(token)
    return ids


def stream_text(
    model: ChatModel,
    tokenizer: TextTokenizer,
    prompt: Prompt,
    options: TextGenerationOptions,
    seed: int,
    skip_special_tokens: bool,
) -> Iterator[str]:
    """Pieces of the answer to one conversation, as they are generated, without leading whitespace unless an
    output format asks for it or the answer `continues` another."""
    decoder = StreamDecoder(tokenizer, skip_special_tokens)
    started = prompt.continues or options.output_format is not None
    steps = generate_tokens(model, [prompt], options, [seed], tokenizer.eos_id, tokenizer.vocabulary)
    for token in chain((token for (token,) in steps), (None,)):  # None after the last token
        piece = decoder.flush() if token is None else decoder.push(token)
        piece = piece if started else piece.lstrip()
        if piece:
            started = True
            yield piece


@torch.no_grad()
def next_token_logits(model: ChatModel, prompt: Prompt, prefill_chunk: int | None = None) -> Tensor:
    """Logits of the text head at the last prompt position, float32 `[V]` on the CPU."""
    x_TD = prompt.embeddings_TD
    check_context(len(prompt), 0, model.decoder.config.max_positions)
    if prefill_chunk is None:
        hidden = model.decoder(x_TD[None])[0, -1]
    else:
        cache = model.decoder.new_cache(1, len(prompt))
        hidden = prefill(model.decoder, [x_TD], cache, prefill_chunk)[0]
    return check_finite(model.text_logits(hidden).float().cpu(), "the model's logits", model.decoder.dtype)


@torch.no_grad()
def score_tokens(decoder: Decoder, head: TokenHead, prompt_TD: Tensor, tokens_A: Tensor) -> Tensor:
    """Log-probability of each token given the prompt and the tokens before it, float32 `[A]` on the CPU.

    `head` is that of the tokens: of text or of image codes.
    """
    tokens = tokens_A.to(prompt_TD.device)
    check_context(len(prompt_TD), len(tokens), decoder.config.max_positions)
    x_TD = torch.cat((prompt_TD, head.embed(tokens[:-1])))
    hidden_AD = decoder(x_TD[None])[0, len(prompt_TD) - 1 :]
    logits_AV = check_finite(head.logits(hidden_AD).float(), "the model's logits", decoder.dtype)
    scores_AV = logits_AV.log_softmax(-1)
    return scores_AV.gather(1, tokens[:, None])[:, 0].cpu()
