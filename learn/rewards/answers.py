"""Rules that score answers, as in DeepSeek-R1-Zero (arXiv 2501.12948, sec. 2.2.2): by result and by form."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...blocks.errors import OptionError, shown
from ...eval.math.values import is_right

R1_FORMAT = r"<think>.*?</think>\s*<answer>.*?</answer>"
"""The form of DeepSeek-R1-Zero's answers."""


class AnswerReward:
    """1 for an answer that is right by the rules of `bifrons eval math`, else 0."""

    def check(self, prompt: Mapping[str, Any]) -> None:
        """Raise `OptionError` for a prompt without an `answer`."""
        if not isinstance(prompt.get("answer"), str | int | float) or isinstance(prompt["answer"], bool):
            raise OptionError(f"its answer is {shown(prompt.get('answer'))}; accepted: a text or a number")

    def __call__(self, prompts: Sequence[Mapping[str, Any]], outputs: Sequence[str]) -> list[float]:
        """The score of each answer."""
        pairs = zip(outputs, prompts, strict=True)
        return [float(is_right(one, str(prompt["answer"]))) for one, prompt in pairs]


class FormatReward:
    """1 for an answer that matches a regular expression as a whole, else 0; by default R1-Zero's form."""

    def __init__(self, pattern: str = R1_FORMAT) -> None:
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except (re.error, OverflowError, RecursionError) as error:
            raise OptionError(f"the form {shown(pattern)} is no regular expression: {error}") from error

    def __call__(self, prompts: Sequence[Mapping[str, Any]], outputs: Sequence[str]) -> list[float]:
        """The score of each answer."""
        return [float(self.pattern.fullmatch(one.strip()) is not None) for one in outputs]
