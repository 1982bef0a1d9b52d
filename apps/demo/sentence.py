"""What a sentence asks to see: the things that *Check it* counts and *Find in it* looks for.

This reads lists of nouns with numbers, and which is left of, right of, above or below which (`a red star left
of two dogs`), in English. Other sentences give longer phrases, which a model may still find. For models that
know the world of things, its own reader goes first, which also reads typing errors, places and pairs.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ...blocks.errors import PromptError
from ...blocks.vocabulary import Vocabulary
from ...nano.world.catalog import things as world_things
from ...nano.world.names import plural
from ...nano.world.reading import read_request
from ...nano.world.scene import RELATIONS

NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
MAX_THINGS = 6
"""Things of a sentence that are looked for, and relations; what comes after them is left out."""
_MAX_LENGTH = 1000
_OPENING = re.compile(
    r"^\W*(?:please )?(?:(?:draw|paint|make|create|generate|give me|show me|show|there is|there are)\b\s*)?"
    r"(?:(?:an? |the )?(?:[\w-]+ ){0,3}?"
    r"(?:photo(?:graph)?|picture|image|painting|drawing|render(?:ing)?|illustration|sketch) of\b)?"
)
_LINK = re.compile(
    r"\b(?:on|to|at) (?P<whose>the|its|their) (?P<side>left|right)\b(?: (?:hand )?side)?(?: of\b)?|"
    r"\b(?P<way>left of|right of|above|over|higher than|below|under(?:neath)?|beneath|lower than)\b|"
    r"[.,;:]|\b(?:and|but|n?or|with(?P<out>out)?|on top of|on|in front of|inside|in|at the|next to|"
    r"together with|beside|near|behind|between|(?<!that )(?<!which )(?:is|are)|\w+ing(?= (?:an?|the)\b))\b"
)
_DIRECTIONS = {
    "left": "left of", "left of": "left of", "right": "right of", "right of": "right of",
    "above": "above", "over": "above", "higher than": "above",
    "below": "below", "under": "below", "underneath": "below", "beneath": "below", "lower than": "below",
}  # fmt: skip
_ONE = ("a single", "one single", "a", "an", "the", "this", "that", "my", "his", "her", "their", "its")
_SOME = ("some", "any", "many", "several", "a few", "few", "lots of", "a lot of", "a group of", "all")
_COUNTS: dict[str, int | None] = (
    {word: number for number, word in enumerate(NUMBERS)}
    | dict.fromkeys(_ONE, 1)
    | dict.fromkeys(_SOME)
    | {"no": 0, "a couple of": 2, "a pair of": 2, "both": 2, "a dozen": 12}
)
_COUNT = re.compile(
    r"^(?:(?P<about>at least|at most|more than|about|around) |(?:exactly|only|just) )?"
    rf"(?:(?P<count>{'|'.join(sorted(_COUNTS, key=len, reverse=True))}|\d{{1,2}})(?:\s+|$))?(?:the )?"
)
_CLAUSE = re.compile(r"^(?P<noun>.+?) (?:that|which) (?:is|are)(?: (?:all )?(?P<adjective>\w+))?$")
_ALL = re.compile(r"^(?:all|both) (?P<adjective>\w+)$")
_PRONOUNS = {"it", "them", "they", "itself", "each other", "one another", "there"}
_PLACES = re.compile(
    r"^(?:.* )?(?:left|right|top|bottom|center|centre|middle|side|corner|background|foreground)$"
)


class Verdict(NamedTuple):
    """Whether what a sentence asks for was seen, None where that can't be said, and a line about it."""

    right: bool | None
    words: str


@dataclass(frozen=True)
class Thing:
    """Something that a sentence names: `three green hearts` is 3 of the phrase `green hearts`. A `count` of
    None is any number above zero."""

    phrase: str
    count: int | None

    @property
    def asked(self) -> str:
        """What was asked for: `3 green hearts`, `no dog`."""
        count = "" if self.count is None else f"{self.count or 'no'} "
        return f"{count}{self.phrase} asked for"

    def verdict(self, seen: int) -> Verdict:
        """Whether as many as this were seen, and that in words: `2 of 3 green hearts`."""
        if self.count is None or seen > self.count:
            return Verdict(self.count is None and seen > 0, f"{self.asked}, {seen or 'none'} seen")
        if self.count == 0:
            return Verdict(True, f"{self.asked}, none seen")
        return Verdict(seen == self.count, f"{seen} of {self.count} {self.phrase}")


@dataclass(frozen=True)
class Relation:
    """Where one thing of a sentence is to another: `left of`, `right of`, `above` or `below`; both by their
    phrases."""

    first: str
    name: str
    second: str

    def verdict(self, holds: bool | None) -> Verdict:
        """Whether it holds, in words."""
        said = {True: "yes", False: "no", None: "that isn't clear"}[holds]
        return Verdict(holds, f"{self.first} {self.name} {self.second}: {said}")


def named_things(sentence: str, vocabulary: Vocabulary | None = None) -> list[Thing]:
    """The things that a sentence names, in its order, each phrase once; up to `MAX_THINGS`.

    vocabulary: of the model that looks for them, if it has one.
    """
    return _read(sentence, vocabulary)[0][:MAX_THINGS]


def named_relations(sentence: str, vocabulary: Vocabulary | None = None) -> list[Relation]:
    """The relations that a sentence states between its things, in its order; up to `MAX_THINGS`.

    vocabulary: of the model that looks for them, if it has one.
    """
    return _read(sentence, vocabulary)[1][:MAX_THINGS]


def _read(sentence: str, vocabulary: Vocabulary | None) -> tuple[list[Thing], list[Relation]]:
    things, relations = (vocabulary and _read_in_world(sentence, vocabulary)) or _read_any(sentence)
    unique: dict[str, Thing] = {}
    for thing in things:
        unique.setdefault(thing.phrase, thing)
    return list(unique.values()), relations


def _read_in_world(sentence: str, vocabulary: Vocabulary) -> tuple[list[Thing], list[Relation]] | None:
    """What a sentence of the world of things names; None for others, and for models of other worlds."""
    if {*vocabulary.things} != {*world_things()}:
        return None
    try:
        request = read_request(sentence[:_MAX_LENGTH])
    except PromptError:
        return None

    def phrase(name: str | None, color: str | None, many: bool) -> str:
        noun = "thing" if name is None else plural(name) if many else name
        return f"{color} {noun}" if color else noun

    groups = [Thing(phrase(one.thing, one.color, one.count > 1), one.count) for one in request.groups]
    absent = [Thing(phrase(one.thing, one.color, False), 0) for one in request.absences]
    relations = [
        Relation(groups[link.first].phrase, link.name, groups[link.second].phrase)
        for link in request.links
        if link.name in RELATIONS
    ]
    return groups + absent, relations


def _read_any(sentence: str) -> tuple[list[Thing], list[Relation]]:
    things: list[Thing] = []
    relations: list[Relation] = []
    waiting: tuple[str, str] | None = None  # `above` and `circle`, in `a circle and, above it, a star`
    none, before, words_before = False, "", ""
    for link, words in _parts(sentence):
        text = link[0] if link else ""
        none = bool(link and link["out"]) or (none and text in ("or", "nor"))
        last, thing = things[-1].phrase if things else "", _thing(words, things)
        if link and (way := link["way"] or link["side"]) and things:
            name = _DIRECTIONS[way]
            if words in _PRONOUNS or link["whose"] in ("its", "their"):
                if words_before and len(things) > 1:
                    relations.append(Relation(last, name, things[-2].phrase))
                else:
                    waiting = (name, last)
            elif thing and (link["way"] or text.endswith("of")):
                same = not words_before and relations and before not in ("is", "are")
                relations.append(Relation(relations[-1].first if same else last, name, thing.phrase))
        if thing:
            none = none or thing.count == 0
            things.append(Thing(thing.phrase, 0) if none else thing)
            if waiting:
                relations.append(Relation(thing.phrase, *waiting))
                waiting = None
        before, words_before = text, words
    return things, relations


def _parts(sentence: str) -> Iterator[tuple[re.Match[str] | None, str]]:
    """The pieces of a sentence, each with the link before it."""
    rest = _OPENING.sub("", sentence[:_MAX_LENGTH].lower())
    link, start = None, 0
    for found in (*_LINK.finditer(rest), None):
        yield link, rest[start : found.start() if found else None].strip(" \t\n\"'!?()")
        if found:
            link, start = found, found.end()


def _thing(words: str, before: list[Thing]) -> Thing | None:
    """What words name, after some things; `all red` changes the last of these."""
    if (both := _ALL.match(words)) and before:
        before[-1] = Thing(f"{both['adjective']} {before[-1].phrase}", before[-1].count)
        return None
    number = _COUNT.match(words)
    assert number is not None
    phrase = words[number.end() :].strip()
    if clause := _CLAUSE.match(phrase):
        phrase = f"{clause['adjective'] or ''} {clause['noun']}".strip()
    if not phrase or phrase in _PRONOUNS or _PLACES.match(phrase):
        return None
    return Thing(phrase, None if number["about"] else _count(number["count"], phrase))


def _count(word: str | None, phrase: str) -> int | None:
    if word is None:
        return None
    if word.isdigit():
        return int(word)
    plural = phrase.endswith("s") and not phrase.endswith(("ss", "us"))
    return None if plural and word in _ONE[4:] else _COUNTS[word]


def number_in(answer: str) -> int | None:
    """The first number of a model's answer, in digits or words up to twelve; None if there is none."""
    words = re.findall(r"[a-z]+|\d+", answer[:_MAX_LENGTH].lower())
    for word in words:
        if word.isdigit():
            return int(word[:6])
        if word in NUMBERS:
            return NUMBERS.index(word)
        if word in ("no", "none"):
            return 0
    return None
