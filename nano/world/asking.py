"""Questions about a picture of the world of things, with answers of a few lower-case words.

Only questions with an unambiguous answer are asked. Half of the questions for yes or no have the answer no,
with things, colors and relations that nearly fit. Words on a sign are answered as they are written.
"""

from collections.abc import Callable
from random import Random

from ...blocks.errors import OptionError
from .asking_more import MORE, cell_words
from .catalog import PAINTS
from .drafts import Draft, group_of, yes
from .names import plural
from .questions import Question
from .relations import GRID_CELLS
from .requests import LINKS, OPPOSITE, Group, Link
from .scene import check_split
from .view import PLACES, View, named, verb
from .wording import NUMBER_WORDS

_HOW = {"left of": "left", "right of": "right", "inside": "inside"}
"""Short answers to "where is A, seen from B?"; others are the relation itself."""
_LARGER = 1.6  # ratio of areas from which on one thing is clearly larger


def _what(view: View, rng: Random) -> Draft | None:
    """The class of a thing given by its color, or by its relation to another."""
    if len(view.seen) == 1 and rng.random() < 0.7:
        one = view.seen[0]
        texts = (
            "What is this?",
            "What is in the picture?",
            "What do you see?",
            "What does the picture show?",
        )
        return Draft(texts, one.thing, (group_of(one, False),))
    if rng.random() < 0.5 or not view.unique:
        one = rng.choice(view.seen)
        if len(view.matching(None, one.color)) > 1:
            return None
        return Draft(
            (f"What is {one.color}?", f"Which thing is {one.color}?", f"What is the {one.color} thing?"),
            one.thing,
            (group_of(one),),
        )
    anchor, name = rng.choice(view.unique), rng.choice(LINKS)
    fits = [one for one in view.seen if one is not anchor and view.relation(one, anchor) == name]
    unclear = [o for o in view.seen if o is not anchor and o not in fits and not view.denies(o, name, anchor)]
    if len(fits) != 1 or unclear:
        return None
    groups = (group_of(fits[0], False), group_of(anchor, False))
    words = view.link_words(name, rng)
    return Draft((f"What is {words} {named(anchor, rng)}?",), fits[0].thing, groups, (Link(0, name, 1),))


def _color(view: View, rng: Random) -> Draft | None:
    """The color of a thing, or of several that share it."""
    one = rng.choice(view.seen)
    same = view.matching(one.thing)
    if len({s.color for s in same}) > 1:
        return None
    spelling = rng.choice(("color", "colour"))
    if len(same) > 1:
        noun = plural(one.thing)
        texts = (f"What {spelling} are the {noun}?", f"Which {spelling} do the {noun} have?")
    else:
        noun, be, do = named(one, rng), verb(one), verb(one, "does", "do")
        texts = (
            f"What {spelling} {be} {noun}?",
            f"Which {spelling} {do} {noun} have?",
            f"What is the {spelling} of {noun}?",
        )
    return Draft(texts, one.color, (group_of(one),))


def _count(view: View, rng: Random) -> Draft | None:
    """The number of all things, of a class, of a color, or of both; sometimes none, and not often one."""
    one, sort = rng.choice(view.seen), rng.randrange(5)
    thing, color = (
        (None, None),
        (one.thing, None),
        (one.thing, None),
        (None, one.color),
        (one.thing, one.color),
    )[sort]
    if rng.random() < 0.12:
        thing, color = rng.choice(((view.absent(rng), None), (one.thing, rng.choice(list(PAINTS)))))
    count = len(view.matching(thing, color))
    if count == 1 and rng.random() < 0.7:
        return None
    noun = plural(thing) if thing else "things"
    noun = f"{color} {noun}" if color else noun
    texts = (
        f"How many {noun} are there?",
        f"How many {noun} are in the picture?",
        f"How many {noun} do you see?",
        f"Count the {noun}.",
    )
    groups = (Group(thing, 1, color),) if thing else ()
    return Draft(texts, NUMBER_WORDS[count], groups)


def _compare(view: View, rng: Random) -> Draft | None:
    """Which of two classes there are more of, and which of two things is larger."""
    names = sorted({one.thing for one in view.seen})
    if len(names) < 2:
        return None
    a, b = rng.sample(names, 2)
    many = len(view.matching(a)), len(view.matching(b))
    if max(many) > 1 and rng.random() < 0.6:
        more, fewer = plural(a), plural(b)
        if rng.random() < 0.5:
            return Draft((f"Are there more {more} than {fewer}?",), yes(many[0] > many[1]))
        texts = (f"Are there more {more} or {fewer}?", f"Which are there more of, {more} or {fewer}?")
        answer = "the same" if many[0] == many[1] else (more, fewer)[many[1] > many[0]]
        return Draft(texts, answer)
    if many != (1, 1):
        return None
    first, second = view.matching(a)[0], view.matching(b)[0]
    ratio = view.area(first) / view.area(second)
    if 1 / _LARGER < ratio < _LARGER:
        return None
    nouns = named(first, rng), named(second, rng)
    if rng.random() < 0.5:
        return Draft((f"{verb(first).title()} {nouns[0]} larger than {nouns[1]}?",), yes(ratio > 1))
    texts = (f"Which is larger, {nouns[0]} or {nouns[1]}?", f"Which is bigger, {nouns[0]} or {nouns[1]}?")
    return Draft(texts, (a, b)[ratio < 1])


def _exists(view: View, rng: Random) -> Draft | None:
    """Whether a thing is there, in a color or in any; and whether there is none."""
    one, truth = rng.choice(view.seen), rng.random() < 0.5
    thing, color = one.thing, one.color if rng.random() < 0.5 else None
    while not truth and view.matching(thing, color):
        thing, color = rng.choice(
            (
                (view.absent(rng), color),
                (one.thing, rng.choice(list(PAINTS))),
                (one.thing, rng.choice(view.seen).color),
            )
        )
    noun = view.article(thing, color)
    groups = (Group(thing, 1, color),)
    if rng.random() < 0.25:
        bare = f"{color} {thing}" if color else thing
        texts = (f"Is there no {bare}?", f"Is it true that there is no {bare}?")
        return Draft(texts, yes(not truth), groups)
    texts = (
        f"Is there {noun}?",
        f"Is there {noun} in the picture?",
        f"Do you see {noun}?",
        f"Can you see {noun}?",
    )
    return Draft(texts, yes(truth), groups)


def _is_color(view: View, rng: Random) -> Draft | None:
    """Whether a thing has a color, mostly one that occurs in the picture."""
    if not view.unique:
        return None
    one = rng.choice(view.unique)
    color = one.color
    if rng.random() < 0.5:
        color = rng.choice([c for c in (*(s.color for s in view.seen), *PAINTS) if c != one.color])
    return Draft(
        (f"{verb(one).title()} {named(one, rng)} {color}?",),
        yes(color == one.color),
        (Group(one.thing, 1, color),),
    )


def _is_related(view: View, rng: Random) -> Draft | None:
    """Whether a thing is in a relation to another."""
    if len(view.unique) < 2:
        return None
    a, b = rng.sample(view.unique, 2)
    name, truth = view.relation(a, b), rng.random() < 0.5
    if name is None:
        return None
    if not truth:
        false = [other for other in LINKS if view.denies(a, other, b)]
        back = OPPOSITE.get(name)
        if not false:
            return None
        name = back if back in false and rng.random() < 0.5 else rng.choice(false)
    text = f"{verb(a).title()} {named(a, rng)} {view.link_words(name, rng)} {named(b, rng)}?"
    return Draft((text,), yes(truth), (group_of(a, False), group_of(b, False)), (Link(0, name, 1),))


def _same(view: View, rng: Random) -> Draft | None:
    """Whether two things have the same color; half of the answers are yes where the picture allows it."""
    wanted = rng.random() < 0.5
    pairs = [(a, b) for a in view.unique for b in view.unique if a is not b]
    fits = [(a, b) for a, b in pairs if (a.color == b.color) == wanted]
    # Most pictures have no pair of the same color: a few of those may say so.
    if not pairs or (not fits and rng.random() < 0.95):
        return None
    a, b = rng.choice(fits or pairs)
    wanted = a.color == b.color
    spelling, nouns = rng.choice(("color", "colour")), (named(a, rng), named(b, rng))
    texts = (
        f"Do {nouns[0]} and {nouns[1]} have the same {spelling}?",
        f"Are {nouns[0]} and {nouns[1]} the same {spelling}?",
        f"Does {nouns[0]} have the same {spelling} as {nouns[1]}?",
    )
    return Draft(texts, yes(wanted), (group_of(a), group_of(b)))


def _where(view: View, rng: Random) -> Draft | None:
    """The cell of a 3 x 3 grid, the relation to another thing, or the place."""
    place = PLACES.get(view.picture.place)
    if place and rng.random() < 0.25:
        return Draft(("Where is this?", "Where was this picture taken?", "In what place is this?"), place)
    if not view.unique:
        return None
    one = rng.choice(view.unique)
    if len(view.unique) > 1 and rng.random() < 0.5:
        other = rng.choice([u for u in view.unique if u is not one])
        name = view.relation(one, other)
        if name is None:
            return None
        a, b = named(one, rng), named(other, rng)
        texts = (f"Where {verb(one)} {a}, seen from {b}?", f"Where {verb(one)} {a} relative to {b}?")
        groups = (group_of(one, False), group_of(other, False))
        return Draft(texts, _HOW.get(name, name), groups, (Link(0, name, 1),))
    cell = view.cell(one.box)
    if cell is None:
        return None
    noun = named(one, rng)
    texts = (f"Where {verb(one)} {noun}?", f"In which part of the picture {verb(one)} {noun}?")
    return Draft(texts, cell_words(cell), (group_of(one, False),))


def _sign(view: View, rng: Random) -> Draft | None:
    """What a sign says, and whether there is one."""
    sign = view.picture.sign
    if sign is None and rng.random() < 0.85:
        return None
    if sign is None or rng.random() < 0.15:
        return Draft(("Is there a sign?", "Is anything written in the picture?"), yes(sign is not None))
    if rng.random() < 0.1:
        texts = ("How many words are on the sign?", "How many words does the sign have?")
        return Draft(texts, NUMBER_WORDS[len(sign.words.split())])
    texts = (
        "What does the sign say?",
        "Read the sign.",
        "What is written on the sign?",
        "Which words are on the sign?",
    )
    return Draft(texts, sign.words)


_SAMPLERS: dict[str, Callable[[View, Random], Draft | None]] = {
    "what": _what, "color": _color, "count": _count, "compare": _compare, "exists": _exists,
    "is color": _is_color, "is related": _is_related, "same": _same, "where": _where, "sign": _sign,
    **MORE,
}  # fmt: skip
KINDS = tuple(_SAMPLERS)
CELLS = tuple(cell for row in GRID_CELLS for cell in row)


def ask(view: View, rng: Random, kind: str | None = None, split: str = "train") -> Question | None:
    """A random question of one of KINDS (of any by default); None if the picture has no question of the kind.

    split: "train": neither question nor answer names a held-out combination; "held_out": they do; "any".
    Raises OptionError for other kinds and splits.
    """
    check_split(split)
    if kind is not None and kind not in _SAMPLERS:
        raise OptionError(f"no questions of kind {kind!r}; accepted: {', '.join(KINDS)}")
    for _ in range(24):
        name = kind or rng.choice(KINDS)
        draft = _SAMPLERS[name](view, rng)
        if draft is not None and (split == "any" or draft.held_out == (split == "held_out")):
            return Question(name, rng.choice(draft.texts), draft.answer, draft.held_out)
    return None
