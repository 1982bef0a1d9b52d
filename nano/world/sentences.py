"""Sentences about the small world in GenEval's schema, each with a scene that shows exactly what it says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ...blocks.errors import OptionError
from .scene import (
    HELD_OUT_COLORINGS,
    HELD_OUT_RELATIONS,
    RELATIONS,
    SHAPES,
    Scene,
    box_of,
    check_split,
    held_out_relation,
    offset,
    place,
    relation,
    sample_colors,
)

KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
HELD_OUT_KINDS = ("colors", "position", "color_attr")
"""The kinds whose sentences can name a held-out combination."""

GENEVAL_SHARE = 0.5
CLEAR = 0.75
"""A stated relation holds with at least this normalised offset (GenEval asks for 0.5)."""

_WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}
_AXIS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


@dataclass(frozen=True)
class Case:
    """A GenEval metadata row and a scene that fulfils it and shows nothing more."""

    metadata: dict[str, Any]
    scene: Scene


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(shape: str) -> str:
    """The shape's plural: "crosses", "stars"."""
    return shape + ("es" if shape.endswith("s") else "s")


def number(count: int) -> str:
    """ "one" to "four"."""
    return _WORDS[count]


def _dress(body: str, rng: Random, several: bool = False) -> str:
    """A noun phrase as a request or statement in one of many forms; `several` asks for "there are"."""
    text = rng.choice(
        (
            body,
            f"a photo of {body}",
            f"an image of {body}",
            f"a picture of {body}",
            f"a painting of {body}",
            f"there {'are' if several else 'is'} {body}",
            f"draw {body}",
            f"paint {body}",
            f"show me {body}",
        )
    )
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.3 else text


def _word(plain: str, others: Sequence[str], rng: Random, several: bool = False) -> str:
    """GenEval's own form of `plain` about half of the time, otherwise another wording."""
    if rng.random() < GENEVAL_SHARE:
        return f"a photo of {plain}"
    return _dress(rng.choice((plain, *others)), rng, several)


def _colored(color: str, shape: str, rng: Random) -> str:
    """Another way to say that a shape has a colour."""
    forms = (f"one {color} {shape}", f"a {shape} that is {color}", f"a single {color} {shape}")
    return rng.choice((article(f"{color} {shape}"), *forms))


def _related(a: str, name: str, b: str, rng: Random) -> list[str]:
    """Other ways to say "a NAME b"; `a` and `b` are noun phrases with their articles."""
    sides = {"left of": ("to the left of", "on the left of", "its left"),
             "right of": ("to the right of", "on the right of", "its right")}  # fmt: skip
    if name in sides:
        to, on, side = sides[name]
        return [f"{a} {to} {b}", f"{a} {on} {b}", f"{b} with {a} to {side}", f"{b} and, to {side}, {a}"]
    over = ("over", "higher than") if name == "above" else ("under", "lower than")
    return [f"{a} {over[0]} {b}", f"{a} {over[1]} {b}", f"{b} with {a} {name} it", f"{b} and, {name} it, {a}"]


def enumeration(phrases: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _row(tag: str, prompt: str, include: list[dict[str, Any]], count: int | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {"tag": tag, "include": include}
    if count is not None:
        row["exclude"] = [{"class": include[0]["class"], "count": count + 1}]
    return {**row, "prompt": prompt}


# Below, each kind says how many shapes and colours it takes, and how its row follows from them.


def _single_row(shapes: Sequence[str], rng: Random) -> dict[str, Any]:
    shape = shapes[0]
    prompt = _word(article(shape), (f"one {shape}", f"a single {shape}", f"just a {shape}"), rng)
    return _row("single_object", prompt, [{"class": shape, "count": 1}])


def _two_row(shapes: Sequence[str], rng: Random) -> dict[str, Any]:
    a, b = article(shapes[0]), article(shapes[1])
    others = (
        f"{a} with {b}",
        f"{a} next to {b}",
        f"one {shapes[0]} and one {shapes[1]}",
        f"{a} together with {b}",
    )
    prompt = _word(f"{a} and {b}", others, rng)
    return _row("two_object", prompt, [{"class": shape, "count": 1} for shape in shapes])


def _counting_row(shapes: Sequence[str], rng: Random) -> dict[str, Any]:
    count, name = len(shapes), plural(shapes[0])
    word = number(count)
    others = (f"{count} {name}", f"exactly {word} {name}", f"{count} {name}", f"{word} {shapes[0]} shapes")
    prompt = _word(f"{word} {name}", others, rng, several=True)
    return _row("counting", prompt, [{"class": shapes[0], "count": count}], count)


def _colors_row(shapes: Sequence[str], colors: Sequence[str], rng: Random) -> dict[str, Any]:
    color, shape = colors[0], shapes[0]
    prompt = _word(article(f"{color} {shape}"), (_colored(color, shape, rng),), rng)
    return _row("colors", prompt, [{"class": shape, "count": 1, "color": color}])


def _attr_row(shapes: Sequence[str], colors: Sequence[str], rng: Random) -> dict[str, Any]:
    plain = [article(f"{c} {s}") for s, c in zip(shapes, colors, strict=True)]
    that = [f"{article(s)} that is {c}" for s, c in zip(shapes, colors, strict=True)]
    one = [f"one {c} {s}" for s, c in zip(shapes, colors, strict=True)]
    others = (" and ".join(that), " and ".join(one), " next to ".join(plain), " with ".join(plain))
    prompt = _word(" and ".join(plain), others, rng)
    include = [{"class": s, "count": 1, "color": c} for s, c in zip(shapes, colors, strict=True)]
    return _row("color_attr", prompt, include)


def _position_row(
    tag: str, shapes: Sequence[str], name: str, colors: Sequence[str] | None, rng: Random
) -> dict[str, Any]:
    """shapes[0] NAME shapes[1]; as in GenEval, the clause with the position comes second."""
    include: list[dict[str, Any]] = [{"class": shapes[1], "count": 1}, {"class": shapes[0], "count": 1}]
    phrases = [article(shape) for shape in shapes]
    if colors is not None:
        include[0]["color"], include[1]["color"] = colors[1], colors[0]
        phrases = [article(f"{c} {s}") for s, c in zip(shapes, colors, strict=True)]
    include[1]["position"] = [name, 0]
    prompt = _word(f"{phrases[0]} {name} {phrases[1]}", _related(phrases[0], name, phrases[1], rng), rng)
    return _row(tag, prompt, include)


def _place_clean(
    rng: Random, shapes: Sequence[str], colors: Sequence[str], split: str, aspect: float
) -> Scene:
    """A placement without held-out relations, unless the split is "any"."""
    while True:
        scene = place(rng, shapes, colors, aspect)
        if split == "any" or not held_out_relation(scene.things):
            return scene


def _place_related(
    rng: Random, shapes: Sequence[str], colors: Sequence[str], name: str, aspect: float
) -> Scene:
    """A placement in which shapes[0] stands NAME shapes[1], clearly, and in no other relation."""
    axis, sign = _AXIS[name]
    while True:
        scene = place(rng, shapes, colors, aspect)
        a, b = (box_of(thing) for thing in scene.things)
        if sign * offset(a, b)[axis] > CLEAR and relation(a, b) == {name}:
            return scene


def _sample_relation(rng: Random, split: str) -> tuple[str, str, str]:
    if split == "held_out":
        return rng.choice(_HELD_OUT_TRIPLES)
    while True:
        a, b = rng.sample(SHAPES, 2)
        triple = (a, rng.choice(RELATIONS), b)
        if split == "any" or triple not in HELD_OUT_RELATIONS:
            return triple


_HELD_OUT_TRIPLES = sorted(HELD_OUT_RELATIONS)
_HELD_OUT_PAIRS = sorted(HELD_OUT_COLORINGS)


def _counting(rng: Random, split: str, aspect: float) -> Case:
    shapes = [rng.choice(SHAPES)] * rng.randint(2, 4)
    colors = sample_colors(rng, shapes, split)
    if rng.random() < 0.5:
        colors = colors[:1] * len(shapes)
    return Case(_counting_row(shapes, rng), _place_clean(rng, shapes, colors, split, aspect))


def _colors(rng: Random, split: str, aspect: float) -> Case:
    if split == "held_out":
        shape, color = rng.choice(_HELD_OUT_PAIRS)
    else:
        shape = rng.choice(SHAPES)
        color = sample_colors(rng, [shape], split)[0]
    return Case(_colors_row([shape], [color], rng), place(rng, [shape], [color], aspect))


def _position(rng: Random, split: str, aspect: float) -> Case:
    a, name, b = _sample_relation(rng, split)
    scene = _place_related(rng, (a, b), sample_colors(rng, (a, b), split), name, aspect)
    return Case(_position_row("position", (a, b), name, None, rng), scene)


def _color_attr(rng: Random, split: str, aspect: float) -> Case:
    while True:
        pairs = [(shape, sample_colors(rng, [shape], split)[0]) for shape in rng.sample(SHAPES, 2)]
        if split == "held_out":
            pairs[0] = rng.choice(_HELD_OUT_PAIRS)
        (a, c), (b, d) = rng.sample(pairs, 2)
        if a != b and c != d:
            break
    return Case(_attr_row((a, b), (c, d), rng), _place_clean(rng, (a, b), (c, d), split, aspect))


def _single(rng: Random, split: str, aspect: float) -> Case:
    shapes = [rng.choice(SHAPES)]
    return Case(_single_row(shapes, rng), place(rng, shapes, sample_colors(rng, shapes, split), aspect))


def _two(rng: Random, split: str, aspect: float) -> Case:
    shapes = rng.sample(SHAPES, 2)
    return Case(
        _two_row(shapes, rng), _place_clean(rng, shapes, sample_colors(rng, shapes, split), split, aspect)
    )


def _mixed(rng: Random, split: str, aspect: float) -> Case:
    """For training: a count with a colour, a relation with colours, or a list of three or four things."""
    form = rng.randrange(3)
    if form == 0:
        shape, count = rng.choice(SHAPES), rng.randint(2, 4)
        color, name = sample_colors(rng, [shape], split)[0], plural(shape)
        plain = f"{number(count)} {color} {name}"
        prompt = _word(
            plain, (f"{count} {color} {name}", f"{number(count)} {name}, all {color}"), rng, several=True
        )
        row = _row("mixed", prompt, [{"class": shape, "count": count, "color": color}], count)
        return Case(row, place(rng, [shape] * count, [color] * count, aspect))
    if form == 1:
        a, name, b = _sample_relation(rng, split)
        colors = sample_colors(rng, (a, b), split)
        scene = _place_related(rng, (a, b), colors, name, aspect)
        return Case(_position_row("mixed", (a, b), name, colors, rng), scene)
    shapes = rng.sample(SHAPES, rng.randint(3, 4))
    colors = sample_colors(rng, shapes, split)
    pairs = list(zip(shapes, colors, strict=True))
    one = enumeration([f"one {c} {s}" for s, c in pairs])
    prompt = _word(enumeration([article(f"{c} {s}") for s, c in pairs]), (one,), rng)
    row = _row("mixed", prompt, [{"class": s, "count": 1, "color": c} for s, c in pairs])
    return Case(row, _place_clean(rng, shapes, colors, split, aspect))


_SAMPLERS: dict[str, Callable[[Random, str, float], Case]] = {
    "single_object": _single,
    "two_object": _two,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
    "mixed": _mixed,
}


def sample_case(kind: str, rng: Random, split: str = "train", aspect: float = 1.0) -> Case:
    """A sentence of one of KINDS or "mixed", and a scene that shows exactly it; the rest is random.

    Split "train": no held-out combination anywhere in the scene. "held_out": the sentence names a held-out
    colouring or relation, and the scene holds no held-out combination that the sentence doesn't name; only
    for HELD_OUT_KINDS. "any": no restriction. Raises OptionError for other kinds and splits.
    """
    check_split(split)
    if kind not in _SAMPLERS:
        raise OptionError(f"kind {kind!r} is unknown; accepted: {', '.join(_SAMPLERS)}")
    if split == "held_out" and kind not in HELD_OUT_KINDS:
        raise OptionError(f"no held-out sentences of kind {kind!r}; accepted: {', '.join(HELD_OUT_KINDS)}")
    return _SAMPLERS[kind](rng, split, aspect)


def suite(n: int, seed: int, split: str = "train") -> list[dict[str, Any]]:
    """`n` metadata rows that cycle evenly over the kinds (over HELD_OUT_KINDS for split "held_out")."""
    check_split(split)
    if n < 0:
        raise OptionError(f"a suite has 0 or more rows, not {n}")
    rng = Random(seed)
    kinds = HELD_OUT_KINDS if split == "held_out" else KINDS
    return [sample_case(kinds[i % len(kinds)], rng, split).metadata for i in range(n)]
