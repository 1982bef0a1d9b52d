"""What a judge is asked and what it answers, and how an answer is read."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...blocks.errors import BifronsError
from ...blocks.json_config import decode_json

YES = ("Yes", "yes", " yes", " Yes")
"""The forms of "yes" whose probabilities GenEval 2's script adds up."""
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)*")


class UnclearAnswer(BifronsError):
    """An answer that can't be scored: the picture is then listed as not scored, neither right nor wrong."""


@dataclass(frozen=True)
class Question:
    """What is asked about one picture, answered greedily.

    system: the system message; none if empty. picture_first: whether the picture comes before the text.
    accepted: answers whose probabilities are wanted; without any, the judge gives a text alone. choices: the
    answer is one of these; without any, it is free.
    """

    text: str
    system: str = ""
    picture_first: bool = True
    max_tokens: int = 1
    accepted: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields by name, without `choices` where there are none."""
        return {name: value for name, value in asdict(self).items() if name != "choices" or value}


@dataclass(frozen=True)
class Draw:
    """How an answer is drawn: a temperature of 0 takes the likeliest tokens, whatever the seed."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """A judge's answer.

    first: natural logarithms of the probabilities of first tokens, by their text; those that the judge tells,
    of which an endpoint has the 20 likeliest. refused: why there is no answer.
    """

    text: str
    first: Mapping[str, float] = field(default_factory=dict)
    refused: str = ""

    def dumps(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def loads(cls, line: str) -> "Answer":
        """The inverse of `dumps`. Raises ValueError for anything else."""
        content = decode_json(line.encode())
        if not isinstance(content, dict) or not isinstance(content.get("text"), str):
            raise ValueError("it is no answer")
        first, refused = content.get("first", {}), content.get("refused", "")
        if not isinstance(first, dict) or not all(isinstance(v, int | float) for v in first.values()):
            raise ValueError("its log-probabilities are no numbers")
        return cls(content["text"], first, str(refused))


def probability(answer: Answer, accepted: Iterable[str]) -> float:
    """The probability that the answer begins with the first token of an accepted one.

    Of the tokens that the judge tells, the first token of a text is taken to be the longest with which it
    begins; each token counts once. A text of which no token is told counts 0.
    """
    tokens = {_first_token(answer.first, text) for text in accepted}
    return min(1.0, sum(math.exp(answer.first[token]) for token in tokens if token is not None))


def _first_token(first: Mapping[str, float], text: str) -> str | None:
    return max((token for token in first if token and text.startswith(token)), key=len, default=None)


def first_word(text: str) -> str:
    """The first word of an answer, in lower case without marks; a number from zero to ten as digits."""
    found = _WORD.search(text)
    word = found[0].lower() if found else ""
    return str(NUMBERS.index(word)) if word in NUMBERS else word


def says(answer: Answer, accepted: Iterable[str]) -> bool:
    """Whether an answer's first word is that of an accepted one."""
    return first_word(answer.text) in {first_word(text) for text in accepted}


def says_yes(answer: Answer) -> bool:
    """Whether an answer is a yes. Raises UnclearAnswer where it is neither yes nor no."""
    word = first_word(answer.text)
    if word not in ("yes", "no"):
        raise UnclearAnswer(f"the judge answered {answer.text[:80]!r}; accepted: yes or no")
    return word == "yes"


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean of numbers of at least 0."""
    logarithms = [math.log(value) if value > 0 else -math.inf for value in values]
    return math.exp(math.fsum(logarithms) / len(logarithms)) if -math.inf not in logarithms else 0.0
