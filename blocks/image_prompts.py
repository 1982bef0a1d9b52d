"""Prompts, negative prompts and seeds of the images of one call, each given once or as a list."""

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .errors import OptionError, PromptError, check_integer, python_number, shown

MAX_SEED = 2**64 - 1
Seed = int | Sequence[int] | np.ndarray | Tensor | None
"""One seed, or several: see `image_seeds`."""
NegativePrompt = str | Sequence[str | None] | None


def prompt_list(prompt: Any) -> list[Any]:
    """The prompts of a call, given as a text or a list of them. Raises `PromptError` if there is none."""
    if not isinstance(prompt, str | Iterable) or isinstance(prompt, bytes):
        raise PromptError(f"the prompt is {shown(prompt)}; accepted: a text or a list of at least one")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise PromptError("no prompt was given; accepted: a text or a list of at least one")
    return prompts


def negative_prompts(given: Any, prompts: int) -> list[Any]:
    """One negative prompt per prompt, of a text or None for all, or a list. Raises `OptionError`."""
    texts = list(given) if isinstance(given, list | tuple) else [given] * prompts
    if len(texts) != prompts:
        accepted = f"one, or {prompts}, one per prompt"
        raise OptionError(f"negative_prompt has {len(texts)} texts; accepted: {accepted}")
    return texts


def image_seeds(seed: Any, prompts: int, per_prompt: int) -> list[int]:
    """One seed per image, prompt-major.

    From a number, image j of every prompt gets `seed + j` (0 follows the largest), so an image's seed does
    not depend on the other prompts of the call. None is a random start for each prompt. A list, array or
    tensor has one start per prompt or one seed per image. Raises `OptionError`.
    """
    seed, per_prompt = python_number(seed), check_integer("num_images_per_prompt", per_prompt, low=1)
    if seed is None:
        starts = [secrets.randbelow(2**32) for _ in range(prompts)]
    elif isinstance(seed, int):
        starts = [check_integer("seed", seed, 0, MAX_SEED)] * prompts
    else:
        starts = list(seed) if isinstance(seed, Sequence | np.ndarray | Tensor) else []
        if isinstance(seed, str) or len(starts) not in (prompts, prompts * per_prompt):
            raise OptionError(
                f"seed is {shown(seed)}; accepted: None, a whole number, or a list of {prompts} (one per "
                f"prompt) or {prompts * per_prompt} (one per picture)"
            )
        starts = [check_integer("seed", start, 0, MAX_SEED) for start in starts]
    count = prompts * per_prompt // max(1, len(starts))
    return [(start + index) % (MAX_SEED + 1) for start in starts for index in range(count)]
