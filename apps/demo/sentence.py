"""What a sentence asks to see: the things that *Check it* counts and *Find in it* looks for."""

import re
from dataclasses import dataclass

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MAX_THINGS = 6
"""Things of a sentence that are looked for; what comes after them is left out."""
_MAX_LENGTH = 1000
_OPENING = re.compile(
    r"^\W*(?:an? |the )?(?:photo(?:graph)?|picture|image|painting|drawing|render(?:ing)?) of\b"
)
_BETWEEN = re.compile(
    r"[.,;]|\b(?:and|with|to the (?:left|right) of|left of|right of|above|below|over|under|on top of|on|in|"
    r"next to|beside|near|behind|in front of|between)\b"
)
_COUNT = re.compile(rf"^(?:exactly |only )?(an?|the|some|no|\d{{1,2}}|{'|'.join(NUMBERS)})\b\s*")


@dataclass(frozen=True)
class Thing:
    """Something that a sentence names: `three green hearts` is 3 of the phrase `green hearts`. A `count` of
    None is any number above zero."""

    phrase: str
    count: int | None

    def verdict(self, seen: int) -> tuple[bool, str]:
        """Whether as many as this were seen, and that in words: `2 of 3 green hearts`."""
        if self.count is None:
            return seen > 0, f"{self.phrase}: {seen}"
        return seen == self.count, f"{seen} of {self.count} {self.phrase}"


def named_things(sentence: str) -> list[Thing]:
    """The things that a sentence names, in its order, each phrase once; up to `MAX_THINGS`.

    This reads lists of nouns with numbers (`a red star left of two dogs`), in English. Other sentences
    give longer phrases, which a model may still find.
    """
    rest = _OPENING.sub("", sentence[:_MAX_LENGTH].lower())
    things: dict[str, Thing] = {}
    for part in _BETWEEN.split(rest):
        words = part.strip(" \t\n\"'!?:()")
        match = _COUNT.match(words)
        phrase = words[match.end() :] if match else words
        if phrase:
            things.setdefault(phrase, Thing(phrase, _number(match[1] if match else "some")))
    return list(things.values())[:MAX_THINGS]


def _number(word: str) -> int | None:
    if word in ("a", "an", "the"):
        return 1
    if word in ("no", "some"):
        return 0 if word == "no" else None
    return int(word) if word.isdigit() else NUMBERS.index(word)


def number_in(answer: str) -> int | None:
    """The first number of a model's answer, in digits or words up to ten; None if there is none."""
    words = re.findall(r"[a-z]+|\d+", answer[:_MAX_LENGTH].lower())
    for word in words:
        if word.isdigit():
            return int(word[:6])
        if word in NUMBERS:
            return NUMBERS.index(word)
        if word in ("no", "none"):
            return 0
    return None
