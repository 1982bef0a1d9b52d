"""What to generate: token heads, sampling parameters, the scheduler's requests and `generate`'s batches.

D decoder width, V vocabulary of a token head, N sequences of a batch, m tokens, T prompt positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from ..errors import OptionError, PromptError, check_integer, check_number


@dataclass(frozen=True)
class TokenHead:
    """Input and output of one kind of tokens (text, image codes): `embed` maps tokens `[m]` to decoder inputs
    `[m, D]`, `logits` maps hidden states `[m, D]` to logits `[m, V]`."""

    embed: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]

    @property
    def owner(self) -> nn.Module | None:
        """The model of which both callables are methods, else None."""
        owners = [getattr(method, "__self__", None) for method in (self.embed, self.logits)]
        return owners[0] if owners[0] is owners[1] and isinstance(owners[0], nn.Module) else None


class SamplingMode(NamedTuple):
    """The sampling parameters that determine which operations a step consists of."""

    guided: bool
    greedy: bool
    top_k: int
    nucleus: bool
    penalized: bool

    @property
    def processed(self) -> bool:
        """Whether logits are processed beyond guidance and temperature."""
        return bool(self.top_k) or self.nucleus or self.penalized


class SamplingTensors(NamedTuple):
    """The sampling parameters that are numbers only; captured steps read them from tensors `[1]`."""

    guidance: float | Tensor
    temperature: float | Tensor
    top_p: float | Tensor
    penalty: float | Tensor
    one: float | Tensor = 1.0
    """Constant 1.0, passed as the temperature where it has already been applied."""


@dataclass(frozen=True)
class SamplingParams:
    """How a token is chosen from logits.

    `temperature=0` is greedy; `top_k=0` and `top_p=1` keep every token. `guidance_scale=None` is no guidance,
    and one row per sequence instead of two. `repetition_penalty=1` is none. Raises `OptionError` for a value
    out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_scale: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.guidance_scale is not None:
            check_number("guidance_scale", self.guidance_scale, low=0.0)
        check_number("temperature", self.temperature, low=0.0)
        check_number("top_p", self.top_p, low=0.0, high=1.0)
        if self.top_p == 0.0:
            raise OptionError("top_p is 0, which keeps no token; accepted: above 0 and up to 1 (1 keeps all)")
        check_integer("top_k", self.top_k, low=0)
        if check_number("repetition_penalty", self.repetition_penalty, low=0.0) == 0.0:
            raise OptionError("repetition_penalty is 0; accepted: above 0 (1 changes nothing)")

    @property
    def rows_each(self) -> int:
        """Decoder rows per sequence: two with guidance, the conditional and the unconditional one."""
        return 1 if self.guidance_scale is None else 2

    @property
    def mode(self) -> SamplingMode:
        greedy = self.temperature == 0.0
        return SamplingMode(
            guided=self.guidance_scale is not None,
            greedy=greedy,
            top_k=0 if greedy else self.top_k,
            nucleus=not greedy and self.top_p < 1.0,
            penalized=self.repetition_penalty != 1.0,
        )

    @property
    def tensors(self) -> SamplingTensors:
        """The numbers as plain floats."""
        scale = 1.0 if self.guidance_scale is None else self.guidance_scale
        return SamplingTensors(scale, self.temperature, self.top_p, self.repetition_penalty)


@dataclass(frozen=True)
class SampledToken:
    """A token and, if the request asks for them, its log-probability and the top (token, logprob) pairs.

    Log-probabilities are those after guidance and before temperature and filters.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Request:
    """One answer or one image, delivered token by token.

    `prompts_TD` holds the embeddings of the prompt, or with guidance of the conditional and the unconditional
    prompt. Both callbacks run on the scheduler's thread and must be quick. `on_token` may return True to
    finish the request. `on_end` is called once with the finish reason: "stop" (the end token, or `on_token`
    returned True), "length", "cancelled" or "error".
    """

    head: TokenHead
    prompts_TD: Sequence[Tensor]
    sampling: SamplingParams
    seed: int
    max_new_tokens: int
    on_token: Callable[[SampledToken], bool | None]
    on_end: Callable[[str], None]
    eos_id: int | None = None
    logprobs: int | None = None
    """Number of top alternatives to report with each token; None reports no log-probabilities."""
    step: int = field(default=0, init=False)
    """Number of tokens sampled so far."""
    row_ids: list[int] = field(default_factory=list, init=False)
    """Its rows of the KV cache, while the request runs."""
    rows: int = field(default=0, init=False)
    cancelled: bool = field(default=False, init=False)
    ended: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.rows = len(self.prompts_TD)
        assert self.rows == self.sampling.rows_each, "a request has one row, or two with guidance"
        assert self.sampling.repetition_penalty == 1.0, "the scheduler keeps no record of tokens seen"

    def cancel(self) -> None:
        """Finish the request before the next step and free its rows. Does nothing once it has finished."""
        self.cancelled = True


@dataclass(frozen=True)
class GenerationBatch:
    """N sequences that start together and get `max_new_tokens` tokens each.

    `rows` are the prompts' embeddings, each `[T_i, D]`: one per sequence, or with guidance two, conditional
    first. `seen`, bool `[N, V]`, marks the prompt's tokens for a repetition penalty; it is not modified.
    `prefill_chunk` limits the prompt positions that are computed at once.
    """

    rows: Sequence[Tensor]
    head: TokenHead
    sampling: SamplingParams
    seeds: Sequence[int]
    max_new_tokens: int
    seen: Tensor | None = None
    prefill_chunk: int | None = None

    def __post_init__(self) -> None:
        assert len(self.rows) == self.sampling.rows_each * len(self.seeds)
        assert (self.seen is not None) == self.sampling.mode.penalized

    @property
    def longest(self) -> int:
        """Positions of the longest prompt."""
        return max(len(row) for row in self.rows)


def check_context(prompt: int, new: int, limit: int) -> None:
    """Raise a `PromptError` that states what would fit if prompt and new tokens exceed the context."""
    if prompt + new > limit:
        raise PromptError(
            f"the prompt takes {prompt} tokens and {new} more are asked for, but the context holds {limit}; "
            + (f"at most {limit - prompt} new tokens fit" if prompt < limit else "shorten the prompt")
        )
