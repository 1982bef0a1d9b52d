"""More questions about a picture of the world of things: lists, sorts of things, limits of numbers, what is
largest or farthest left, places, and what is not there."""

from collections.abc import Callable
from random import Random

from .catalog import PAINTS, things
from .drafts import Draft, yes
from .names import PAIRED, plural
from .questions import NO_MATCH
from .requests import Group
from .view import PLACES, View
from .wording import NUMBER_WORDS, enumeration

_SORTS = {
    "animal": ("animal", "animals"),
    "vehicle": ("vehicle", "vehicles"),
    "shape": ("shape", "shapes"),
    "food": ("piece of food", "pieces of food"),
}
"""Names of sorts of things that people ask for."""
_LARGER = 1.6  # ratio of areas from which on one thing is clearly larger
_ENDS = {
    "left": ("farthest to the left", "leftmost"),
    "right": ("farthest to the right", "rightmost"),
    "top": ("at the very top", "topmost"),
    "bottom": ("at the very bottom", "bottommost"),
}
_ON = {"left": "on the left", "right": "on the right", "center": "in the center"}
_FARTHER = 0.08  # of a side: what is farther to it by less is not clearly the first


def _missing(view: View, rng: Random) -> Draft:
    """The color or the place of a thing that is not there."""
    thing = view.absent(rng)
    be, spelling = "are" if thing in PAIRED else "is", rng.choice(("color", "colour"))
    texts = (
        f"What {spelling} {be} the {thing}?",
        f"What is the {spelling} of the {thing}?",
        f"Where {be} the {thing}?",
        f"In which part of the picture {be} the {thing}?",
    )
    return Draft(texts, NO_MATCH)


def _list(view: View, rng: Random) -> Draft:
    """All things from left to right, by their class."""
    found: dict[str, int] = {}
    for one in sorted(view.seen, key=lambda s: (s.box[0] + s.box[2], s.box[1] + s.box[3])):
        found[one.thing] = found.get(one.thing, 0) + 1
    names = [
        f"{NUMBER_WORDS[count]} {plural(thing)}"
        if count > 1
        else f"a pair of {thing}"
        if thing in PAIRED
        else view.article(thing)
        for thing, count in found.items()
    ]
    texts = [
        "What things are in the picture?",
        "Which things do you see?",
        "What can you see?",
        "List the things in the picture.",
    ]
    if len(view.seen) > 1:
        texts += ["What is in the picture?", "What do you see?", "What is this?"]
    return Draft(texts, enumeration(names))


def _sort(view: View, rng: Random) -> Draft | None:
    """Whether there are animals, how many, and which."""
    sorts = {one.thing: things()[one.thing].kind for one in view.seen}
    sort = rng.choice(list(_SORTS))
    if rng.random() < 0.6:
        sort = next((kind for kind in sorts.values() if kind in _SORTS), sort)
    found, (one, many) = [s for s in view.seen if sorts[s.thing] == sort], _SORTS[sort]
    draw = rng.random()
    if draw < 0.4:
        return Draft((f"Is there {view.article(one)}?", f"Are there any {many}?"), yes(bool(found)))
    if draw < 0.7:
        return Draft((f"How many {many} are there?", f"Count the {many}."), NUMBER_WORDS[len(found)])
    if len({s.thing for s in found}) != 1:
        return None
    return Draft((f"Which {one} is it?", f"Which {one} do you see?"), found[0].thing)


def _number(view: View, rng: Random) -> Draft:
    """Whether there are as many things, or more or fewer; numbers are near the right one."""
    thing = rng.choice((None, rng.choice(view.seen).thing))
    count, noun = len(view.matching(thing)), plural(thing) if thing else "things"
    near = max(2, count + rng.choice((-1, 0, 0, 0, 1, 2)))
    if rng.random() < 0.6:
        words = NUMBER_WORDS[near]
        texts = (
            f"Are there {words} {noun}?",
            f"Do you see {words} {noun}?",
            f"Are there exactly {near} {noun}?",
        )
        return Draft(texts, yes(count == near))
    limit = max(1, near - rng.choice((0, 1)))
    if rng.random() < 0.5:
        return Draft((f"Are there more than {NUMBER_WORDS[limit]} {noun}?",), yes(count > limit))
    return Draft((f"Are there fewer than {NUMBER_WORDS[near]} {noun}?",), yes(count < near))


def _all(view: View, rng: Random) -> Draft | None:
    """Whether all things, or all of a class, have a color."""
    several = [one.thing for one in view.seen if len(view.matching(one.thing)) > 1]
    thing = rng.choice((None, *several))
    found = view.matching(thing)
    if len(found) < 2:
        return None
    color = rng.choice(found).color if rng.random() < 0.8 else rng.choice(list(PAINTS))
    noun = plural(thing) if thing else "things"
    texts = (f"Are all {noun} {color}?", f"Are all of the {noun} {color}?")
    groups = (Group(thing, 1, color),) if thing else ()
    return Draft(texts, yes(all(one.color == color for one in found)), groups)


def _either(view: View, rng: Random) -> Draft | None:
    """Whether two things are both there, or one of them is."""
    there = rng.choice(view.seen).thing
    others = [one.thing for one in view.seen if one.thing != there]
    pair = [
        there if rng.random() < 0.6 else view.absent(rng),
        rng.choice(others) if others and rng.random() < 0.5 else view.absent(rng),
    ]
    if pair[0] == pair[1]:
        return None
    rng.shuffle(pair)
    found, (a, b) = [bool(view.matching(name)) for name in pair], map(view.article, pair)
    if rng.random() < 0.5:
        texts = (f"Is there {a} and {b}?", f"Do you see {a} and {b}?", f"Are there {a} and {b}?")
        return Draft(texts, yes(all(found)))
    return Draft((f"Is there {a} or {b}?", f"Do you see {a} or {b}?"), yes(any(found)))


def _extreme(view: View, rng: Random) -> Draft | None:
    """Which thing is clearly the largest or the smallest, or the first from a side."""
    if len(view.seen) < 2:
        return None
    name = rng.choice(("largest", "biggest", "smallest", "left", "right", "top", "bottom"))
    if name in ("largest", "biggest", "smallest"):
        least = name == "smallest"
        order = sorted(view.seen, key=view.area, reverse=not least)
        areas = sorted((view.area(order[0]), view.area(order[1])))
        if areas[1] < _LARGER * areas[0]:
            return None
        return Draft((f"What is the {name} thing?", f"Which thing is the {name}?"), order[0].thing)
    axis, sign = int(name in ("top", "bottom")), -1 if name in ("right", "bottom") else 1
    place = {id(one): sign * (one.box[axis] + one.box[axis + 2]) / 2 for one in view.seen}
    order = sorted(view.seen, key=lambda one: place[id(one)])
    if place[id(order[1])] - place[id(order[0])] < _FARTHER * (view.height if axis else view.width):
        return None
    end, most = _ENDS[name]
    return Draft((f"What is {end}?", f"Which thing is {end}?", f"What is the {most} thing?"), order[0].thing)


def _place(view: View, rng: Random) -> Draft | None:
    """Whether the picture shows a place."""
    shown = PLACES.get(view.picture.place)
    if shown is None and rng.random() < 0.7:
        return None
    asked = shown if shown and rng.random() < 0.5 else rng.choice(list(PLACES.values()))
    texts = (f"Is this {asked}?", f"Was this picture taken {asked}?")
    return Draft(texts, yes(asked == shown))


def _says(view: View, rng: Random) -> Draft | None:
    """Whether a sign says something, and where it is; now and then about a sign that is not there."""
    sign = view.picture.sign
    if sign is None:
        texts = ("What does the sign say?", "Read the sign.", "Where is the sign?")
        return Draft(texts, NO_MATCH) if rng.random() < 0.15 else None
    cell = view.cell(sign.box)
    if rng.random() < 0.5 and cell is not None:
        where = cell_words(cell)
        return Draft(("Where is the sign?", "In which part of the picture is the sign?"), where)
    words = sign.words if rng.random() < 0.5 else _other_words(sign.words, rng)
    return Draft((f'Does the sign say "{words}"?', f"Does the sign say {words}?"), yes(words == sign.words))


def _other_words(words: str, rng: Random) -> str:
    """Words of which one letter is another."""
    places = [i for i, letter in enumerate(words) if letter.isalnum()]
    at = rng.choice(places)
    letters = "0123456789" if words[at].isdigit() else "abcdefghijklmnopqrstuvwxyz"
    other = rng.choice([letter for letter in letters if letter != words[at].lower()])
    return words[:at] + (other.upper() if words[at].isupper() else other) + words[at + 1 :]


def cell_words(cell: str) -> str:
    """A cell of the grid as an answer: "at the top left", "on the right"."""
    return _ON.get(cell, f"at the {cell}")


MORE: dict[str, Callable[[View, Random], Draft | None]] = {
    "missing": _missing, "list": _list, "sort": _sort, "number": _number, "all": _all, "either": _either,
    "extreme": _extreme, "place": _place, "says": _says,
}  # fmt: skip
"""What makes the questions of each kind."""
