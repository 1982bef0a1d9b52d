"""What to generate: token heads, sampling parameters and requests.

D decoder width, V vocabulary of a token head, N requests, m tokens, T prompt positions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..device import not_finite
from ..drafts import DraftKind
from ..errors import OptionError, PromptError, as_python_numbers, check_integer, check_number
from ..logit_bias import check_logit_bias
from ..speculate import Speculate
from ..token_masks import OutputMatcher

MAX_LOGPROBS = 20
"""Most alternatives that can be reported with a token, as in OpenAI's API."""


@dataclass(frozen=True)
class TokenHead:
    """Input and output of one kind of tokens (text, image codes): `embed` maps tokens `[m]` to decoder inputs
    `[m, D]`, `logits` maps hidden states `[m, D]` to logits `[m, V]`. `drafts` is the way to guess them."""

    embed: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    drafts: DraftKind | None = None

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that steps may read: those of the model of which both callables are methods, but for
        its `per_image_modules`. Empty if they aren't methods of one model."""
        owners = [getattr(method, "__self__", None) for method in (self.embed, self.logits)]
        model = owners[0] if owners[0] is owners[1] else None
        if not isinstance(model, nn.Module):
            return []
        apart = getattr(model, "per_image_modules", ())
        return [module for name, module in model.named_children() if name not in apart]


class SamplingMode(NamedTuple):
    """What a step of a request consists of. Requests with equal heads and modes are sampled together."""

    guided: bool
    greedy: bool
    filtered: bool
    penalized: bool
    logprobs: bool = False
    constrained: bool = False
    biased: bool = False

    @property
    def draws_raw_logits(self) -> bool:
        """Whether tokens are drawn from the logits as they are, but for guidance and temperature."""
        return not (self.filtered or self.penalized or self.constrained or self.biased)


class SamplingTensors(NamedTuple):
    """Sampling parameters of N requests, each `[N]`, but for the biases `[N, K]` of the tokens `biased`."""

    temperature: Tensor
    top_p: Tensor
    guidance: Tensor
    penalty: Tensor
    top_k: Tensor
    min_p: Tensor
    presence: Tensor
    frequency: Tensor
    biases: Tensor
    biased: Tensor


@dataclass(frozen=True)
class SamplingParams:
    """How a token is chosen from logits.

    `temperature=0` is greedy; `top_k=0`, `top_p=1` and `min_p=0` keep every token. `guidance_scale=None` is
    no guidance, and one row of the cache instead of two. `repetition_penalty=1` is none. `frequency_penalty`
    is subtracted from a token's logit as often as it was generated, `presence_penalty` once if it was.
    `logit_bias` is added to the logits of tokens, by id. Raises `OptionError` for a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_scale: float | None = None
    repetition_penalty: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        as_python_numbers(self)
        if self.guidance_scale is not None:
            check_number("guidance_scale", self.guidance_scale, low=0.0)
        check_number("temperature", self.temperature, low=0.0)
        check_number("top_p", self.top_p, low=0.0, high=1.0)
        if self.top_p == 0.0:
            raise OptionError("top_p is 0, which keeps no token; accepted: above 0 and up to 1 (1 keeps all)")
        check_integer("top_k", self.top_k, low=0)
        if check_number("repetition_penalty", self.repetition_penalty, low=0.0) == 0.0:
            raise OptionError("repetition_penalty is 0; accepted: above 0 (1 changes nothing)")
        check_number("min_p", self.min_p, 0.0, 1.0)
        check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        object.__setattr__(self, "logit_bias", check_logit_bias(self.logit_bias))

    @property
    def rows(self) -> int:
        """Rows of the cache per request: two with guidance, the conditional and the unconditional one."""
        return 1 if self.guidance_scale is None else 2

    @property
    def mode(self) -> SamplingMode:
        greedy = self.temperature == 0.0
        return SamplingMode(
            guided=self.guidance_scale is not None,
            greedy=greedy,
            filtered=not greedy and (self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0),
            penalized=(self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0),
            biased=bool(self.logit_bias),
        )


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
    prompt. Instead of embeddings a request may carry `inputs` and `embed`, which maps the inputs of several
    requests to their prompts: the scheduler embeds all waiting requests at once. Then `prompt_tokens` states
    the length of the longest prompt.

    `on_token` and `on_end` run on the scheduler's thread and must be quick. `on_token` may return True to
    finish the request. `on_end` is called once with the finish reason: "stop" (the end token, or `on_token`
    returned True), "length", "cancelled", or "error", whose cause is in `error`.
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
    """Top alternatives to report with each token, up to `MAX_LOGPROBS`; None: no log-probabilities."""
    priority: int = 0
    """Requests with lower numbers start first."""
    decoder: Any = None
    """Computes it: the scheduler's (None), or one with adapters that is based on it (`Decoder.base`)."""
    client: object = None
    """Whose request it is: of one priority, those of whom has fewer rows in use start first."""
    seen_ids: Tensor | None = None
    """The prompt's token ids, which a repetition penalty counts as seen."""
    prefill_chunk: int | None = None
    """Most prompt positions that are computed at once; None leaves it to the scheduler."""
    matcher: OutputMatcher | None = None
    """Holds the answer to an output format; the request ends with "stop" when the format is complete."""
    speculate: Speculate = False
    """How many tokens a pass may check, where the head has `drafts`; they change no token."""
    embed: Callable[[list[Any]], list[Any]] | None = None
    inputs: Any = None
    prompt_tokens: int = 0
    step: int = field(default=0, init=False)
    """Number of tokens sampled so far."""
    delivered: int = field(default=0, init=False)
    passes: int = field(default=0, init=False)
    """Number of passes of the decoder that gave the delivered tokens."""
    row_ids: list[int] = field(default_factory=list, init=False)
    """Its rows of the cache, while the request runs."""
    cancelled: bool = field(default=False, init=False)
    ended: bool = field(default=False, init=False)
    error: BaseException | None = field(default=None, init=False)
    overflowed: bool = field(default=False, init=False)
    """Whether it ended because its logits were not finite: then its rows may hold NaN."""

    def __post_init__(self) -> None:
        assert self.embed is not None or len(self.prompts_TD) == self.rows, "one prompt, or two with guidance"
        assert self.logprobs is None or self.logprobs <= MAX_LOGPROBS
        self.seed = (self.seed + 2**63) % 2**64 - 2**63  # the same 64 bits as a number of int64
        if self.embed is None:
            self.prompt_tokens = max(len(prompt) for prompt in self.prompts_TD)

    @property
    def rows(self) -> int:
        """Rows of the cache that the request takes."""
        return self.sampling.rows

    @property
    def positions(self) -> int:
        """Positions that each of its rows takes at most."""
        return self.prompt_tokens + self.max_new_tokens

    @property
    def mode(self) -> SamplingMode:
        return self.sampling.mode._replace(
            logprobs=self.logprobs is not None, constrained=self.matcher is not None
        )

    def deliver(self, sampled: SampledToken, dtype: torch.dtype) -> bool:
        """Hand over a token; returns whether it ends the request.

        Raises `BifronsError` for the token -1, which stands for logits that are not finite, in this dtype.
        """
        if sampled.token < 0:
            self.overflowed = True
            raise not_finite("the model's logits", dtype)
        if sampled.token == self.eos_id:
            return True
        stops = bool(self.on_token(sampled))
        return (self.matcher is not None and self.matcher.accept(sampled.token)) or stops

    def cancel(self) -> None:
        """Finish the request before the next step and free its rows. Does nothing once it has finished."""
        self.cancelled = True


Tokens = list[tuple[Request, SampledToken]]
"""The tokens of a step."""


def group_by_mode(requests: Sequence[Request]) -> dict[tuple[TokenHead, SamplingMode], list[Request]]:
    """The requests that are sampled together, by token head and mode."""
    groups: dict[tuple[TokenHead, SamplingMode], list[Request]] = {}
    for request in requests:
        groups.setdefault((request.head, request.mode), []).append(request)
    return groups


def check_context(prompt: int, new: int, limit: int) -> None:
    """Raise a `PromptError` that states what would fit if prompt and new tokens exceed the context."""
    if prompt + new > limit:
        raise PromptError(
            f"the prompt takes {prompt} tokens and {new} more are asked for, but the context holds {limit}; "
            + (f"at most {limit - prompt} new tokens fit" if prompt < limit else "shorten the prompt")
        )
