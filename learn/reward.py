"""What a reward is: a function of prompts and samples that gives scores."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..blocks.errors import BifronsError, check_number

Prompt = Mapping[str, Any]
"""A row of a prompts file: it has a `prompt` to paint or the `messages` of a conversation to answer, and
whatever else rewards read."""


class Reward(Protocol):
    """Scores samples.

    `reward(prompts, outputs)` gets each sample's prompt, a row of the prompts file, and the sample: a PIL
    picture or an answer. It returns a number for each, or None where there is no score.
    """

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Any]) -> Sequence[float | None]: ...


def checked_scores(scores: Any, count: int) -> Tensor:
    """A reward's scores as float64 `[count]`, NaN for None. Raises `BifronsError` for anything else."""
    values = scores.tolist() if hasattr(scores, "tolist") else scores
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
        found = f"{len(values)} scores" if isinstance(values, Sequence) else f"a {type(scores).__name__}"
        raise BifronsError(
            f"the reward gave {found} for {count} samples; accepted: a number, or None, for each"
        )
    for value in values:
        if value is not None:
            check_number("a score of the reward", value, -1e9, 1e9)
    return torch.tensor(
        [torch.nan if value is None else float(value) for value in values], dtype=torch.float64
    )


def score_figures(scores: Tensor) -> dict[str, float]:
    """Mean and standard deviation of scores, and how many samples have none (NaN). Raises `BifronsError` if
    no sample has one."""
    scored, count = scores[scores.isfinite()], scores.numel()
    if not len(scored):
        raise BifronsError(f"the reward gave none of {count} samples a score; is it the right one?")
    return {
        "reward": float(scored.mean()),
        "reward_std": float(scored.std(correction=0)),
        "unscored": count - len(scored),
    }
