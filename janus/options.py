"""Options of painting: the one place that holds their defaults and their ranges."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from ..blocks.chat.text_generation import MAX_SEED
from ..blocks.engine.sampling_params import Sampling, check_integer, check_number
from ..blocks.errors import OptionError


@dataclass(frozen=True)
class PaintOptions:
    """How a picture is painted. `guidance_scale=1` means no guidance: no unconditional rows are computed."""

    guidance_scale: float = 5.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    negative_prompt: str | None = None

    def __post_init__(self) -> None:
        check_number("guidance_scale", self.guidance_scale, low=0.0)
        _ = self.sampling
        if self.negative_prompt is not None and not isinstance(self.negative_prompt, str):
            raise OptionError(f"negative_prompt is {self.negative_prompt!r}; accepted: a text or None")
        if self.negative_prompt is not None and not self.guided:
            raise OptionError(
                "negative_prompt works through guidance; accepted with a guidance_scale other than 1"
            )

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)


def picture_seeds(seed: int | Sequence[int] | None, prompts: int, per_prompt: int) -> list[int]:
    """One seed per picture, prompt-major.

    A number: picture j of every prompt gets `seed + j`, so that a picture's seed does not depend on
    which other prompts are in the call. None: a fresh random start for each prompt. A list: one
    number per prompt (then + j) or one per picture.
    """
    if seed is None:
        starts = [secrets.randbelow(2**32) for _ in range(prompts)]
    elif isinstance(seed, int):
        starts = [seed] * prompts
    elif isinstance(seed, Sequence) and not isinstance(seed, str) and len(seed) == prompts:
        starts = list(seed)
    elif isinstance(seed, Sequence) and not isinstance(seed, str) and len(seed) == prompts * per_prompt:
        return [check_integer("seed", number, 0, MAX_SEED) for number in seed]
    else:
        raise OptionError(
            f"seed is {seed!r}; accepted: None, a whole number, or a list of {prompts} (one per prompt) "
            f"or {prompts * per_prompt} (one per picture)"
        )
    for start in starts:
        check_integer("seed", start, 0, MAX_SEED - per_prompt)
    return [start + index for start in starts for index in range(per_prompt)]
