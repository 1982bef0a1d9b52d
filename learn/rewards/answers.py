"""Rules that score answers, as in DeepSeek-R1-Zero (arXiv 2501.12948, sec. 2.2.2): by result and by form."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...blocks.errors import OptionError, shown

R1_FORMAT = r"<think>.*?</think>\s*<answer>.*?</answer>"
"""The form of DeepSeek-R1-Zero's answers."""
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def final_answer(text: str) -> str:
    """What an answer ends with: within the last `<answer>` tags, else after the last colon or equals sign of
    its last line; lower case, without spaces around it and a full stop."""
    tagged = _ANSWER.findall(text)
    line = tagged[-1] if tagged else re.split("[:=]", text.strip().rpartition("\n")[2])[-1]
    return line.strip().lower().rstrip(".").strip()


def same_answer(found: str, expected: str) -> bool:
    """Whether two answers are equal as numbers, or else as texts."""
    if found == expected:
        return True
    try:
        return float(found.replace(",", "")) == float(expected.replace(",", ""))
    except ValueError:
        return False


class AnswerReward:
    """1 for an answer whose `final_answer` is the prompt's `answer`, else 0."""

    def check(self, prompt: Mapping[str, Any]) -> None:
        """Raise `OptionError` for a prompt without an `answer`."""
        if not isinstance(prompt.get("answer"), str | int | float) or isinstance(prompt["answer"], bool):
            raise OptionError(f"its answer is {shown(prompt.get('answer'))}; accepted: a text or a number")

    def __call__(self, prompts: Sequence[Mapping[str, Any]], outputs: Sequence[str]) -> list[float]:
        """The score of each answer."""
        expected = [final_answer(str(prompt["answer"])) for prompt in prompts]
        return [float(same_answer(final_answer(one), e)) for one, e in zip(outputs, expected, strict=True)]


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
