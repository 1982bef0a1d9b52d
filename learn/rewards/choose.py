"""Rewards by name, and sums of them."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ...blocks.errors import OptionError, check_number
from ...eval.geneval.detectors import KINDS
from ...eval.judges.judge import JudgeChoice
from ..reward import Reward, checked_scores
from .answers import AnswerReward, FormatReward
from .detector import DetectorReward
from .judge import QUESTION, JudgeReward
from .server import SERVER_KEY, ServerReward

NAMES = (
    "shapes, world, mask2former-official, mask2former-hf (detectors, by GenEval's rules), judge:URL, "
    "judge:vl2:MODEL (asked yes or no), http(s)://... (a reward server), answer, format, format:REGEX (rules "
    "for answers), module:function"
)


@dataclass(frozen=True)
class RewardOptions:
    """What some rewards take: detectors `weights`, `clip` and `device`; judges `judge_model`, `judge_options`
    (JSON), `question` and `by_answer`; those asked by HTTP the environment variable `key` of their key and a
    `timeout` in seconds; `workers` are processes or questions at once."""

    weights: Path | None = None
    clip: Path | None = None
    device: str | None = None
    judge_model: str = ""
    judge_options: str = "{}"
    question: str = QUESTION
    by_answer: bool = False
    key: str | None = None
    timeout: float = 120.0
    workers: int | None = None

    def __post_init__(self) -> None:
        check_number("timeout", self.timeout, 0.1, 3600.0)


class WeightedRewards:
    """The weighted sum of rewards; where one gives a sample no score, it has none."""

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float]) -> None:
        if len(weights) != len(rewards):
            raise OptionError(f"{len(weights)} weights for {len(rewards)} rewards; accepted: one for each")
        self.rewards, self.weights = rewards, weights

    def check(self, prompt: Mapping[str, Any]) -> None:
        """Raise `BifronsError` for a prompt that one of the rewards can't score."""
        for reward in self.rewards:
            check_prompt(reward, prompt)

    def __call__(self, prompts: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> list[float | None]:
        """The score of each sample."""
        sums = sum(
            weight * checked_scores(reward(prompts, outputs), len(outputs))
            for reward, weight in zip(self.rewards, self.weights, strict=True)
        )
        return [None if value != value else value for value in sums.tolist()]  # type: ignore[union-attr]


def check_prompt(reward: Reward, prompt: Mapping[str, Any]) -> None:
    """Raise `BifronsError` for a prompt that a reward says it can't score."""
    check: Callable[[Mapping[str, Any]], None] | None = getattr(reward, "check", None)
    if check is not None:
        check(prompt)


def make_reward(name: str, options: RewardOptions) -> Reward:
    """A reward by name, one of `NAMES`. Raises `OptionError` for any other, and `BifronsError` for one that
    can't work here (missing weights, no such server)."""
    if name in KINDS:
        return DetectorReward(name, options.weights, options.clip, options.device, options.workers)
    if name == "answer":
        return AnswerReward()
    kind, _, rest = name.partition(":")
    if kind == "format":
        return FormatReward(rest) if rest else FormatReward()
    if kind == "judge" and rest:
        key, workers = options.key or JudgeChoice.key, options.workers or JudgeChoice.workers
        choice = JudgeChoice(rest, options.judge_model, "", options.judge_options, key, workers=workers)
        return JudgeReward(choice, options.question, options.by_answer, options.device, options.timeout)
    if kind in ("http", "https"):
        return ServerReward(name, options.key or SERVER_KEY, options.timeout)
    if kind and rest:
        return load_function(kind, rest)
    raise OptionError(f"reward is {name!r}; accepted: {NAMES}")


def load_function(module: str, name: str) -> Reward:
    """A function `reward(prompts, outputs)` of a module that Python finds, the working folder included.
    Raises `OptionError`."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(f"reward is {module}:{name}, but {error}; accepted: {NAMES}") from error
    if not callable(found):
        raise OptionError(f"{module}:{name} is {found!r}; accepted: a function of prompts and outputs")
    return cast(Reward, found)
