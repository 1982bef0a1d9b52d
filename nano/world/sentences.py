"""Prompts about the synthetic world in GenEval's schema, each with a scene that exactly matches it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ...blocks.errors import OptionError
from .relations import clear_relation
from .scene import (
    HELD_OUT_COLORINGS,
    HELD_OUT_RELATIONS,
    RELATIONS,
    SHAPES,
    Scene,
    check_split,
    has_held_out_relation,
    place,
    sample_colors,
)
from .wording import (
    NUMBER_WORDS,
    article,
    attr_row,
    colors_row,
    counting_row,
    enumeration,
    metadata_row,
    plural,
    position_row,
    single_row,
    two_row,
    word_prompt,
)

KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
HELD_OUT_KINDS = ("colors", "position", "color_attr")
"""Kinds whose sentences can name a held-out combination."""


@dataclass(frozen=True)
class Case:
    """A GenEval metadata row, and a scene that satisfies it and shows nothing else."""

    metadata: dict[str, Any]
    scene: Scene


def _place_clean(
    rng: Random, shapes: Sequence[str], colors: Sequence[str], split: str, aspect: float
) -> Scene:
    """A scene from `place`, without held-out relations unless the split is "any"."""
    while True:
        scene = place(rng, shapes, colors, aspect)
        if split == "any" or not has_held_out_relation(scene.objects):
            return scene


def _place_related(
    rng: Random, shapes: Sequence[str], colors: Sequence[str], name: str, aspect: float
) -> Scene:
    """A scene in which `name` is the clear and only relation of shapes[0] to shapes[1]."""
    while True:
        scene = place(rng, shapes, colors, aspect)
        if clear_relation(*scene.objects) == name:
            return scene


def _sample_relation(rng: Random, split: str) -> tuple[str, str, str]:
    """A random (shape, relation, shape) triple of the split."""
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
    return Case(counting_row(shapes, rng), _place_clean(rng, shapes, colors, split, aspect))


def _colors(rng: Random, split: str, aspect: float) -> Case:
    if split == "held_out":
        shape, color = rng.choice(_HELD_OUT_PAIRS)
    else:
        shape = rng.choice(SHAPES)
        color = sample_colors(rng, [shape], split)[0]
    return Case(colors_row([shape], [color], rng), place(rng, [shape], [color], aspect))


def _position(rng: Random, split: str, aspect: float) -> Case:
    a, name, b = _sample_relation(rng, split)
    scene = _place_related(rng, (a, b), sample_colors(rng, (a, b), split), name, aspect)
    return Case(position_row("position", (a, b), name, None, rng), scene)


def _color_attr(rng: Random, split: str, aspect: float) -> Case:
    while True:
        pairs = [(shape, sample_colors(rng, [shape], split)[0]) for shape in rng.sample(SHAPES, 2)]
        if split == "held_out":
            pairs[0] = rng.choice(_HELD_OUT_PAIRS)
        (a, c), (b, d) = rng.sample(pairs, 2)
        if a != b and c != d:
            break
    return Case(attr_row((a, b), (c, d), rng), _place_clean(rng, (a, b), (c, d), split, aspect))


def _single(rng: Random, split: str, aspect: float) -> Case:
    shapes = [rng.choice(SHAPES)]
    return Case(single_row(shapes, rng), place(rng, shapes, sample_colors(rng, shapes, split), aspect))


def _two(rng: Random, split: str, aspect: float) -> Case:
    shapes = rng.sample(SHAPES, 2)
    return Case(
        two_row(shapes, rng), _place_clean(rng, shapes, sample_colors(rng, shapes, split), split, aspect)
    )


def _mixed(rng: Random, split: str, aspect: float) -> Case:
    """For training only: a count and a color, a relation and colors, or a list of three or four objects."""
    variant = rng.randrange(3)
    if variant == 0:
        shape, count = rng.choice(SHAPES), rng.randint(2, 4)
        color, name = sample_colors(rng, [shape], split)[0], plural(shape)
        word = NUMBER_WORDS[count]
        paraphrases = (f"{count} {color} {name}", f"{word} {name}, all {color}")
        prompt = word_prompt(f"{word} {color} {name}", paraphrases, rng, several=True)
        row = metadata_row("mixed", prompt, [{"class": shape, "count": count, "color": color}], count)
        return Case(row, place(rng, [shape] * count, [color] * count, aspect))
    if variant == 1:
        a, name, b = _sample_relation(rng, split)
        colors = sample_colors(rng, (a, b), split)
        scene = _place_related(rng, (a, b), colors, name, aspect)
        return Case(position_row("mixed", (a, b), name, colors, rng), scene)
    shapes = rng.sample(SHAPES, rng.randint(3, 4))
    colors = sample_colors(rng, shapes, split)
    pairs = list(zip(shapes, colors, strict=True))
    one = enumeration([f"one {c} {s}" for s, c in pairs])
    prompt = word_prompt(enumeration([article(f"{c} {s}") for s, c in pairs]), (one,), rng)
    row = metadata_row("mixed", prompt, [{"class": s, "count": 1, "color": c} for s, c in pairs])
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
    """A random sentence of one of KINDS or "mixed", with a random scene that shows exactly what it says.

    Split "train": the scene has no held-out combination. "held_out" (only for HELD_OUT_KINDS): the sentence
    names a held-out coloring or relation, and the scene has no other held-out combination. "any": no
    restriction. Raises OptionError for other kinds and splits.
    """
    check_split(split)
    if kind not in _SAMPLERS:
        raise OptionError(f"kind {kind!r} is unknown; accepted: {', '.join(_SAMPLERS)}")
    if split == "held_out" and kind not in HELD_OUT_KINDS:
        raise OptionError(f"no held-out sentences of kind {kind!r}; accepted: {', '.join(HELD_OUT_KINDS)}")
    return _SAMPLERS[kind](rng, split, aspect)


def suite(n: int, seed: int, split: str = "train") -> list[dict[str, Any]]:
    """`n` metadata rows that cycle through KINDS (HELD_OUT_KINDS for split "held_out").

    Raises OptionError for a negative `n` and for unknown splits.
    """
    check_split(split)
    if n < 0:
        raise OptionError(f"a suite has 0 or more rows, not {n}")
    rng = Random(seed)
    kinds = HELD_OUT_KINDS if split == "held_out" else KINDS
    return [sample_case(kinds[i % len(kinds)], rng, split).metadata for i in range(n)]
