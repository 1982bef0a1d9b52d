"""Questions about two pictures of the world of things, with answers of a few lower-case words."""

from collections.abc import Callable
from random import Random

from ...blocks.errors import OptionError
from .asking import ask
from .catalog import PAINTS
from .names import plural
from .questions import Question
from .requests import Group, Request, is_held_out
from .scene import check_split
from .view import PLACES, View, named
from .wording import NUMBER_WORDS

WHICH = {
    (True, False): "the first",
    (False, True): "the second",
    (True, True): "both",
    (False, False): "neither",
}
"""Answers, by whether the first and the second picture are meant."""
_NUMBERS = (*NUMBER_WORDS, "nine", "ten", "eleven", "twelve")


def _held_out(thing: str | None, color: str | None) -> bool:
    return bool(thing and color) and is_held_out(Request((Group(thing or "", 1, color),)))


def _which(a: View, b: View, rng: Random) -> Question:
    """Which picture shows a thing; a quarter of the things are in neither."""
    one = rng.choice((rng.choice(a.seen), rng.choice(b.seen)))
    thing, color = rng.choice(((one.thing, None), (one.thing, one.color), (None, one.color)))
    if rng.random() < 0.25:
        thing, color = rng.choice(((a.absent(rng), None), (one.thing, rng.choice(list(PAINTS)))))
    noun = a.article(thing or "thing", color)
    text = rng.choice((f"Which picture shows {noun}?", f"In which picture is there {noun}?"))
    answer = WHICH[bool(a.matching(thing, color)), bool(b.matching(thing, color))]
    return Question("which", text, answer, _held_out(thing, color))


def _countable(a: View, b: View, rng: Random) -> tuple[str, int, int]:
    """A plural, for all things or those of one class, and their number in each picture."""
    thing = rng.choice((None, rng.choice((*a.seen, *b.seen)).thing))
    return plural(thing) if thing else "things", len(a.matching(thing)), len(b.matching(thing))


def _more(a: View, b: View, rng: Random) -> Question:
    noun, first, second = _countable(a, b, rng)
    text = rng.choice((f"Which picture has more {noun}?", f"In which picture are there more {noun}?"))
    return Question("more", text, WHICH[first > second, second > first], False)


def _total(a: View, b: View, rng: Random) -> Question:
    noun, first, second = _countable(a, b, rng)
    text = rng.choice(
        (f"How many {noun} are there in both pictures together?", f"How many {noun} do both pictures show?")
    )
    return Question("total", text, _NUMBERS[first + second], False)


def _same(a: View, b: View, rng: Random) -> Question | None:
    """Whether a thing that occurs once in each picture has the same color in both."""
    wanted = rng.random() < 0.5
    pairs = [(x, y) for x in a.unique for y in b.unique if x.thing == y.thing]
    pairs = [(x, y) for x, y in pairs if (x.color == y.color) == wanted]
    if not pairs:
        return None
    one, other = rng.choice(pairs)
    spelling, noun = rng.choice(("color", "colour")), named(one, rng)
    text = rng.choice(
        (
            f"Does {noun} have the same {spelling} in both pictures?",
            f"Is {noun} the same {spelling} in both pictures?",
        )
    )
    held_out = _held_out(one.thing, one.color) or _held_out(other.thing, other.color)
    return Question("same", text, ("no", "yes")[wanted], held_out)


def _common(a: View, b: View, rng: Random) -> Question | None:
    """The only class that both pictures show, and the only one that is in one of them alone."""
    first, second = ({one.thing for one in view.seen} for view in (a, b))
    if rng.random() < 0.5:
        found, text = first & second, "What do both pictures show?"
    else:
        number = rng.randrange(2)
        found = (first - second, second - first)[number]
        text = f"What is in the {('first', 'second')[number]} picture, but not in the other?"
    return Question("common", text, found.pop(), False) if len(found) == 1 else None


def _sign(a: View, b: View, rng: Random) -> Question | None:
    """Which picture has a sign, and what the only one says."""
    signs = a.picture.sign, b.picture.sign
    words = [sign.words for sign in signs if sign]
    if len(words) == 1 and rng.random() < 0.5:
        return Question("sign", "What does the sign say?", words[0], False)
    if len(words) == 2 and rng.random() < 0.7:
        number = rng.randrange(2)
        text = f"What does the sign in the {('first', 'second')[number]} picture say?"
        return Question("sign", text, words[number], False)
    return Question("sign", "Which picture has a sign?", WHICH[bool(signs[0]), bool(signs[1])], False)


def _place(a: View, b: View, rng: Random) -> Question | None:
    """Which picture shows a place."""
    places = [PLACES.get(view.picture.place) for view in (a, b)]
    if not any(places):
        return None
    asked = rng.choice((*filter(None, places), rng.choice(list(PLACES.values()))))
    text = rng.choice((f"Which picture was taken {asked}?", f"Which picture is {asked}?"))
    return Question("place", text, WHICH[places[0] == asked, places[1] == asked], False)


def _one(a: View, b: View, rng: Random) -> Question | None:
    """A question about one of the two."""
    number = rng.randrange(2)
    question = ask((a, b)[number], rng, split="any")
    if question is None or question.text.startswith(("Where was", "Was this")):
        return None
    asked = question.text[0].lower() + question.text[1:]
    name = ("first", "second")[number]
    text = rng.choice((f"In the {name} picture, {asked}", f"Look at the {name} picture: {asked}"))
    return Question("one", text, question.answer, question.held_out)


_SAMPLERS: dict[str, Callable[[View, View, Random], Question | None]] = {
    "which": _which, "more": _more, "total": _total, "same": _same, "common": _common, "sign": _sign,
    "place": _place, "one": _one,
}  # fmt: skip
KINDS = tuple(_SAMPLERS)


def compare(a: View, b: View, rng: Random, kind: str | None = None, split: str = "train") -> Question | None:
    """A random question of one of KINDS (of any by default) about two pictures; None if they have no question
    of the kind. Splits are those of `asking.ask`. Raises OptionError for other kinds and splits."""
    check_split(split)
    if kind is not None and kind not in _SAMPLERS:
        raise OptionError(f"no questions of kind {kind!r} about two pictures; accepted: {', '.join(KINDS)}")
    for _ in range(24):
        question = _SAMPLERS[kind or rng.choice(KINDS)](a, b, rng)
        if question is not None and (split == "any" or question.held_out == (split == "held_out")):
            return question
    return None
