"""Reads a sentence about the world of things: which request it makes, and which words are unknown."""

import re
from dataclasses import dataclass, field
from functools import lru_cache

from ...blocks.errors import PromptError
from .catalog import PAINTS, things
from .names import (
    COLOR_WORDS,
    FILLERS,
    LINK_WORDS,
    NONE_OF_COLOR,
    NOT_WORDS,
    NUMBERS,
    OPENINGS,
    PAIRED,
    SIDE_WORDS,
    SIZE_WORDS,
    place_words,
    repair,
    thing_words,
)
from .requests import Absence, Group, Link, Request

_LONGEST = 6  # words of the longest phrase
_PREDICATES = ("is", "are", "in", "that is", "that are", "which is", "which are", "all", "color", "colour",
               "of the color", "of the colour")  # fmt: skip


@lru_cache(maxsize=1)
def _phrases() -> dict[str, tuple[str, str]]:
    """Every phrase with its sort and meaning; of those with two meanings, the last."""
    found = {phrase: ("filler", phrase) for phrase in FILLERS}
    found |= {phrase: ("opening", phrase) for phrase in OPENINGS}
    for sort, table in (("link", LINK_WORDS), ("side", SIDE_WORDS)):
        found |= {phrase: (sort, name) for name, phrases in table.items() for phrase in phrases}
    found |= {phrase: ("not", phrase) for phrase in NOT_WORDS}
    found |= {phrase: ("not color", phrase) for phrase in NONE_OF_COLOR}
    found |= {phrase: ("place", name) for phrase, name in place_words().items()}
    found |= {phrase: ("thing", name) for phrase, name in thing_words().items()}
    found |= {word: ("color", color) for word, color in COLOR_WORDS.items()}
    found |= {word: ("size", size) for word, size in SIZE_WORDS.items()}
    return found | {phrase: ("number", str(number)) for phrase, number in NUMBERS.items()}


def _words(text: str) -> tuple[list[str], list[str]]:
    """The words in lower case, spelled right, with commas; and those that are unknown."""
    words, unknown = [], []
    for raw in re.findall(r"[^\W_]+(?:'[^\W_]+)?|,", text.replace("-", " ").replace("’", "'").lower()):
        word = raw if raw == "," else repair(raw)
        if word is None:
            unknown.append(raw)
        else:
            words.append(word)
    return words, unknown


def _tokens(words: list[str]) -> list[tuple[str, str, str]]:
    """The longest phrases from left to right, each as (phrase, sort, meaning). A word that is only part of
    phrases that do not occur is skipped."""
    tokens, start = [], 0
    while start < len(words):
        if words[start].isdecimal():
            tokens.append((words[start], "number", str(min(int(words[start][:4]), 1000))))
            start += 1
            continue
        for length in range(min(_LONGEST, len(words) - start), 0, -1):
            phrase = " ".join(words[start : start + length])
            if phrase in _phrases():
                tokens.append((phrase, *_phrases()[phrase]))
                break
        else:
            length = 1
            tokens.append((words[start], "filler", words[start]))
        start += length
    return tokens


@dataclass
class _Reader:
    """What has been read so far: groups, links, absences, and what waits for the next thing."""

    groups: list[Group] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)
    place: str | None = None
    number: int = 1
    color: str | None = None
    size: str | None = None
    negated: bool = False
    in_negation: bool = False
    link: str | None = None
    joined: bool = False  # the last two groups, by "with"
    side: str | None = None
    with_before: bool = False

    def thing(self, name: str) -> None:
        """A thing's name: a group or an absence."""
        if self.negated:
            self.absences.append(Absence(name, self.color))
            self.in_negation = True
        else:
            self.groups.append(Group(name, self.number, self.color, self.size))
            last = len(self.groups) - 1
            if self.link is not None and last:
                self.links.append(Link(last - 1, self.link, last))
            elif self.side is not None and last:
                self.links.append(Link(last, self.side, last - 1))
            self.joined, self.with_before = self.with_before, False
            self.link = self.side = None
        self.number, self.color, self.size, self.negated = 1, None, None, False

    def paint(self, color: str) -> None:
        """A color that is said of the last thing, after its name."""
        self.groups[-1] = Group(self.groups[-1].thing, self.groups[-1].count, color, self.groups[-1].size)

    def beside(self, name: str) -> None:
        """ "to its left": the last thing, joined by "with", is there; or the next one is."""
        if self.joined and len(self.groups) > 1:
            last = len(self.groups) - 1
            self.links.append(Link(last, name, last - 1))
            self.joined = False
        else:
            self.side = name


def _names_color(tokens: list[tuple[str, str, str]], i: int) -> bool:
    """Whether the color at i is said of the next thing: "red", "red big" or "red colored" before a name."""
    following = [sort for phrase, sort, _ in tokens[i + 1 : i + 4] if phrase not in ("colored", "coloured")]
    rest = [sort for sort in following if sort != "size"]
    fruit = tokens[i + 1 : i + 2] and tokens[i + 1][0] == "orange"
    return bool(rest) and (
        rest[0] == "thing" or (rest[0] == "color" and (bool(fruit) or _names_color(tokens, i + 1)))
    )


def _is_fruit(tokens: list[tuple[str, str, str]], i: int, reader: _Reader) -> bool:
    """Whether "orange" at i is the fruit: nothing that it could color follows, nor a word that says "is"."""
    if tokens[i][0] != "orange" or _names_color(tokens, i):
        return False
    before = tokens[i - 1][0] if i else ""
    return not (reader.groups and (before in _PREDICATES or tokens[i - 1][1] == "not color"))


def _step(reader: _Reader, tokens: list[tuple[str, str, str]], i: int) -> None:
    """Read one token."""
    phrase, sort, meaning = tokens[i]
    if sort == "thing" or (sort == "color" and _is_fruit(tokens, i, reader)):
        reader.thing(meaning)
    elif sort == "color":
        before = tokens[i - 1] if i else ("", "", "")
        if before[1] == "not color" and reader.groups:
            reader.absences.append(Absence(reader.groups[-1].thing, meaning))
        elif _names_color(tokens, i) or not reader.groups:
            reader.color = meaning
        else:
            reader.link = None if before[0] == "in" else reader.link
            reader.paint(meaning)
    elif sort == "number":
        following = [name for _, kind, name in tokens[i + 1 : i + 4] if kind == "thing"]
        pair = phrase == "a pair of" and following and following[0] in PAIRED
        reader.number = 1 if pair else int(meaning)
        reader.negated = reader.negated or reader.number == 0
    elif sort == "size":
        reader.size = meaning
    elif sort == "not" or (phrase == "or" and reader.in_negation):
        reader.negated = True
    elif sort == "link":
        reader.link = meaning
    elif sort == "side":
        reader.beside(meaning)
    elif sort == "place":
        reader.place, reader.link = meaning, None
    elif phrase == "with":
        reader.with_before = True


def unknown_words(text: str) -> list[str]:
    """The words of a text that this world does not know, in lower case, in order."""
    return _words(text)[1]


def read_request(text: str) -> Request:
    """The request that a sentence makes.

    Read are capitals or none, British and American spelling, and words with one typing error. Raises
    PromptError for unknown words, for a sentence without a thing, and for what no picture can show.
    """
    words, unknown = _words(text)
    if unknown:
        raise PromptError(
            f"unknown words: {', '.join(unknown)}; a picture can show {', '.join(things())}, in "
            f"{', '.join(PAINTS)}, and up to six of them"
        )
    reader = _Reader()
    tokens = _tokens(words)
    for i in range(len(tokens)):
        _step(reader, tokens, i)
    if not reader.groups:
        raise PromptError("the sentence names no thing to show; for example: two red cats left of a dog")
    try:
        links = tuple(dict.fromkeys(reader.links))
        return Request(tuple(reader.groups), links, tuple(reader.absences), reader.place)
    except ValueError as error:
        raise PromptError(str(error)) from error
