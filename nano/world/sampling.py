"""Random requests about the world of things, with a sentence and a picture for each."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from ...blocks.errors import OptionError
from .catalog import PAINTS, places, things
from .describing import describe
from .painting import Picture, paint
from .pieces import ANY, Variety
from .requests import (
    DEPTHS,
    Absence,
    Group,
    Link,
    Request,
    held_out_coloring,
    held_out_link,
    is_held_out,
    to_row,
)
from .scene import RELATIONS, check_split, relation

KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's kinds."""
MORE_KINDS = ("many", "chain", "negation", "depth", "size", "place", "mixed", "match")
"""Five and six things; two or three relations in a row; what a picture must not show; in front of, behind and
inside; small and large; places; counts, colors and a relation together; several things of a color."""

_SUITABLE = {
    "microwave": ("food",),
    "oven": ("food",),
    "toilet": ("gadget", "sport", "kitchen"),
    "cup": ("kitchen", "food", "animal", "gadget", "shape"),
    "bed": ("animal", "gadget", "shape", "food"),
}
"""Kinds of things that are asked for inside some holders; others hold things of any kind but a person."""


@dataclass(frozen=True)
class Example:
    """A sentence, the request it makes, and a picture that shows it. row: GenEval's metadata; see
    `to_row`."""

    kind: str
    prompt: str
    request: Request
    picture: Picture

    @property
    def row(self) -> dict[str, Any]:
        """The metadata in GenEval's schema."""
        return to_row(self.request, self.kind, self.prompt)


def _things(rng: Random, count: int) -> list[str]:
    return rng.sample(list(things()), count)


def _paint(group: Group, rng: Random, split: str) -> Group:
    """The group with a color of the split."""
    colors = [c for c in PAINTS if split == "any" or not held_out_coloring(group.thing, c)]
    return replace(group, color=rng.choice(colors))


def _single(rng: Random, split: str) -> Request:
    return Request((Group(_things(rng, 1)[0]),))


def _two(rng: Random, split: str) -> Request:
    return Request(tuple(Group(name) for name in _things(rng, 2)))


def _counting(rng: Random, split: str) -> Request:
    return Request((Group(_things(rng, 1)[0], rng.randint(2, 6)),))


def _colors(rng: Random, split: str) -> Request:
    return Request((_paint(Group(_things(rng, 1)[0]), rng, split),))


def _color_attr(rng: Random, split: str) -> Request:
    while True:
        groups = tuple(_paint(Group(name), rng, split) for name in _things(rng, 2))
        if groups[0].color != groups[1].color:
            return Request(groups)


def _position(rng: Random, split: str) -> Request:
    return Request(tuple(Group(name) for name in _things(rng, 2)), (Link(0, rng.choice(RELATIONS), 1),))


def _many(rng: Random, split: str) -> Request:
    total = rng.choice((5, 6))
    counts = rng.choice(
        ((1,) * (total - 1) + (total - 4,), (total - 2, 2), (total - 3, 3), (total - 3, 2, 1))
    )
    counts = (1, 1, 1, 1, 1) if sum(counts) != total else counts
    groups = [Group(name, count) for name, count in zip(_things(rng, len(counts)), counts, strict=True)]
    named = rng.random() < 0.5
    return Request(tuple(_paint(group, rng, split) if named else group for group in groups))


def _chain(rng: Random, split: str) -> Request:
    count = rng.choice((3, 3, 4))
    groups = [Group(name) for name in _things(rng, count)]
    named = rng.random() < 0.5
    links = tuple(Link(i, rng.choice(RELATIONS), i + 1) for i in range(count - 1))
    return Request(tuple(_paint(group, rng, split) if named else group for group in groups), links)


def _negation(rng: Random, split: str) -> Request:
    name, other = _things(rng, 2)
    group = Group(name, rng.choice((1, 1, 2, 3)))
    if rng.random() < 0.4:
        return Request((group,), absences=(Absence(name, rng.choice(tuple(PAINTS))),))
    group = _paint(group, rng, split) if rng.random() < 0.5 else group
    return Request((group,), absences=(Absence(other),))


def _depth(rng: Random, split: str) -> Request:
    name = rng.choice(DEPTHS)
    first, second = _things(rng, 2)
    if name == "inside":
        second = rng.choice([n for n, known in things().items() if known.holders])
        fit = [n for n, k in things().items() if k.kind in _SUITABLE.get(second, (k.kind,)) and k.size < 0.45]
        first = rng.choice([n for n in fit if n not in (second, "person")])
    groups = [Group(first), Group(second)]
    if rng.random() < 0.5:
        groups = [_paint(group, rng, split) for group in groups]
    return Request(tuple(groups), (Link(0, name, 1),))


def _size(rng: Random, split: str) -> Request:
    sizes = rng.choice((("small", "large"), ("large", "small"), ("small",), ("large",)))
    groups = [Group(name, size=size) for name, size in zip(_things(rng, len(sizes)), sizes, strict=True)]
    return Request(tuple(_paint(group, rng, split) if rng.random() < 0.6 else group for group in groups))


def _place(rng: Random, split: str) -> Request:
    place = rng.choice([place for place in places().values() if place.words])
    usual = [name for name, known in things().items() if known.kind in (place.fits or (known.kind,))]
    groups = [Group(name, rng.choice((1, 1, 1, 2, 3))) for name in rng.sample(usual, rng.choice((1, 1, 2)))]
    groups = [_paint(group, rng, split) if rng.random() < 0.4 else group for group in groups]
    return Request(tuple(groups), place=place.name)


def _mixed(rng: Random, split: str) -> Request:
    """A count and a color, a relation and colors, or three or four things with colors."""
    variant = rng.randrange(3)
    if variant == 0:
        return Request((_paint(Group(_things(rng, 1)[0], rng.randint(2, 6)), rng, split),))
    if variant == 1:
        request = _position(rng, split)
        return replace(request, groups=tuple(_paint(group, rng, split) for group in request.groups))
    return Request(tuple(_paint(Group(name), rng, split) for name in _things(rng, rng.choice((3, 4)))))


def _match(rng: Random, split: str) -> Request:
    """Two to four things in one color or in two."""
    names, colors = _things(rng, rng.choice((2, 2, 3, 4))), rng.sample(list(PAINTS), rng.choice((1, 1, 2)))
    return Request(tuple(Group(name, 1, rng.choice(colors)) for name in names))


_SAMPLERS: dict[str, Callable[[Random, str], Request]] = {
    "single_object": _single, "two_object": _two, "counting": _counting, "colors": _colors,
    "position": _position, "color_attr": _color_attr, "many": _many, "chain": _chain, "negation": _negation,
    "depth": _depth, "size": _size, "place": _place, "mixed": _mixed, "match": _match,
}  # fmt: skip
HELD_OUT_KINDS = ("colors", "position", "color_attr", "chain", "depth", "mixed", "match")
"""Kinds whose requests can name a held-out combination."""


def sample_request(kind: str, rng: Random, split: str = "train") -> Request:
    """A random request of one of KINDS or MORE_KINDS.

    Split "train": it names no held-out combination. "held_out" (for HELD_OUT_KINDS): at least one. "any": no
    restriction. Raises OptionError for other kinds and splits.
    """
    check_split(split)
    if kind not in _SAMPLERS or (split == "held_out" and kind not in HELD_OUT_KINDS):
        accepted = HELD_OUT_KINDS if split == "held_out" else tuple(_SAMPLERS)
        raise OptionError(f"no {split} requests of kind {kind!r}; accepted: {', '.join(accepted)}")
    while True:
        request = _SAMPLERS[kind](rng, "train" if split == "train" else "any")
        if split == "any" or is_held_out(request) == (split == "held_out"):
            return request


def sample_example(
    kind: str,
    rng: Random,
    split: str = "train",
    width: int = 192,
    height: int = 192,
    variety: Variety = ANY,
) -> Example:
    """A random request of this kind with a sentence and a picture; see `sample_request` and `paint`."""
    while True:
        request = sample_request(kind, rng, split)
        try:
            picture = paint(request, rng, width, height, split, variety)
        except OptionError:  # such as a large bed inside a cup
            continue
        if split != "train" or not _shows_held_out_link(picture):
            return Example(kind, describe(request, rng), request, picture)


def _shows_held_out_link(picture: Picture) -> bool:
    """Whether any two things of a picture are in a relation that is held out for them."""
    return any(
        held_out_link(a.thing, name, b.thing)
        for a in picture.seen
        for b in picture.seen
        if a.thing != b.thing
        for name in relation(a.box, b.box)
    )
