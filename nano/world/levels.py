"""Harder sentences about the synthetic world, each with a scene that exactly matches it.

The kinds: "many" (five or six things), "chain" (two or three relations in a row) and "negation" (what a
picture must not show). None of them occurs in the training of the embedded models.
"""

from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

from ...blocks.errors import OptionError
from .relations import clear_relation
from .scene import COLORS, SHAPES, place, sample_colors
from .sentences import Case
from .wording import NUMBER_WORDS, article, enumeration, metadata_row, plural, word_prompt

HARD_KINDS = ("many", "chain", "negation")


def _counted(count: int, color: str | None, shape: str) -> str:
    """For example "a red star" or "three stars"."""
    colored = f"{color} " if color else ""
    return article(colored + shape) if count == 1 else f"{NUMBER_WORDS[count]} {colored}{plural(shape)}"


def _exactly(row: dict[str, Any]) -> dict[str, Any]:
    """The row with no more of each thing than it includes."""
    more = [{"class": clause["class"], "count": clause["count"] + 1} for clause in row["include"]]
    return {"tag": row["tag"], "include": row["include"], "exclude": more, "prompt": row["prompt"]}


def _many(rng: Random) -> Case:
    """Five or six things: of as many shapes, or several of two or three, with or without colors."""
    total = rng.choice((5, 6))
    groups = rng.choice(((1,) * total, (total - 2, 2), (total - 3, 3), (total - 3, 2, 1)))
    shapes = rng.sample(SHAPES, len(groups))
    colors = sample_colors(rng, shapes, "any")
    named = rng.random() < 0.5
    include: list[dict[str, Any]] = [{"class": s, "count": n} for s, n in zip(shapes, groups, strict=True)]
    if named:
        for clause, color in zip(include, colors, strict=True):
            clause["color"] = color
    things = zip(groups, colors, shapes, strict=True)
    phrases = [_counted(count, color if named else None, shape) for count, color, shape in things]
    prompt = word_prompt(enumeration(phrases), (), rng, several=True)
    each = [(shape, color) for shape, color, n in zip(shapes, colors, groups, strict=True) for _ in range(n)]
    scene = place(rng, [shape for shape, _ in each], [color for _, color in each])
    return Case(_exactly(metadata_row("many", prompt, include)), scene)


def _chain(rng: Random) -> Case:
    """Three or four things, each in a clear relation to the next."""
    while True:
        shapes = rng.sample(SHAPES, rng.choice((3, 4)))
        colors = sample_colors(rng, shapes, "any")
        scene = place(rng, shapes, colors)
        objects = scene.objects
        names = [clear_relation(a, b) for a, b in pairwise(objects)]
        if None not in names:
            break
    named = rng.random() < 0.5
    phrases = [article(f"{c} {s}" if named else s) for s, c in zip(shapes, colors, strict=True)]
    text = f"{phrases[0]} {names[0]} {phrases[1]}"
    for name, phrase in zip(names[1:], phrases[2:], strict=True):
        text += f" that is {name} {phrase}"
    # As in GenEval, a clause's position refers to an earlier clause: the last thing comes first.
    include: list[dict[str, Any]] = []
    for place_of, (shape, color) in enumerate(reversed(list(zip(shapes, colors, strict=True)))):
        clause: dict[str, Any] = {"class": shape, "count": 1}
        if named:
            clause["color"] = color
        if place_of:
            clause["position"] = [names[-place_of], place_of - 1]
        include.append(clause)
    prompt = word_prompt(text, (), rng)
    return Case(metadata_row("chain", prompt, include), scene)


def _negation(rng: Random) -> Case:
    """A thing or several without another, or not of a color."""
    shape, other = rng.sample(SHAPES, 2)
    count = rng.choice((1, 1, 2, 3))
    color, wrong = rng.sample(tuple(COLORS), 2)
    if rng.random() < 0.5:
        colored = rng.random() < 0.5
        include: list[dict[str, Any]] = [{"class": shape, "count": count}]
        include[0] |= {"color": color} if colored else {}
        exclude: list[dict[str, Any]] = [{"class": other, "count": 1}]
        thing = _counted(count, color if colored else None, shape)
        plain = f"{thing} and no {other}"
        others = (f"{thing} without {article(other)}", f"{thing} but no {plural(other)}")
    else:
        include = [{"class": shape, "count": count}]
        exclude = [{"class": shape, "count": 1, "color": wrong}]
        thing = _counted(count, None, shape)
        verb, none = ("are", "none of them") if count > 1 else ("is", "but not")
        plain = f"{thing} that {verb} not {wrong}"
        others = (f"{thing}, {none} {wrong}", f"{thing} in any color but {wrong}")
    row = metadata_row("negation", word_prompt(plain, others, rng, several=count > 1), include)
    row = {"tag": row["tag"], "include": include, "exclude": exclude, "prompt": row["prompt"]}
    return Case(row, place(rng, [shape] * count, [color] * count))


_SAMPLERS: dict[str, Callable[[Random], Case]] = {"many": _many, "chain": _chain, "negation": _negation}


def sample_hard_case(kind: str, rng: Random) -> Case:
    """A random sentence of one of HARD_KINDS, with a random scene that shows what it says and nothing else.

    The row is in GenEval's schema, where an exclude clause may also have a color. Raises OptionError for
    other kinds.
    """
    if kind not in _SAMPLERS:
        raise OptionError(f"kind {kind!r} is unknown; accepted: {', '.join(HARD_KINDS)}")
    return _SAMPLERS[kind](rng)
