"""What an engine works on: a request is one answer or one picture, in a head, told token by token.

D decoder width, V a head's vocabulary, m requests of one head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .sampling import TokenHead
from .sampling_params import Sampling


@dataclass(frozen=True)
class SampledToken:
    """A token and, where the request asks for them, its log-probability and the likeliest (token, logprob).

    They are of the model's own distribution: after guidance, before temperature and filters.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Request:
    """What to write, and whom to tell. Both callbacks run on the engine's thread and must be quick.

    `prompts_TD` is the prompt's embeddings, or with guidance the conditional and the unconditional ones.
    `on_token` returns True to end the request there. `on_end` is called once, with "stop" (an end token, or
    `on_token`'s wish), "length", "cancelled" or "error".
    """

    head: TokenHead
    prompts_TD: Sequence[Tensor]
    sampling: Sampling
    seed: int
    max_new_tokens: int
    on_token: Callable[[SampledToken], bool | None]
    on_end: Callable[[str], None]
    eos_id: int | None = None
    guidance_scale: float = 1.0
    logprobs: int | None = None
    """How many likeliest tokens to tell beside the chosen one; None tells no log-probabilities."""
    step: int = field(default=0, init=False)
    places: list[int] = field(default_factory=list, init=False)
    rows: int = field(default=0, init=False)
    cancelled: bool = field(default=False, init=False)
    ended: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.rows = len(self.prompts_TD)
        assert self.rows in (1, 2), "a request has a row, or two with guidance"

    def cancel(self) -> None:
        """End the request before the next step; its rows are free then. Harmless once it has ended."""
        self.cancelled = True
