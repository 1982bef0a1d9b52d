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
    attr_row,
    colors_row,
    counting_row,
    position_row,
    single_row,
    two_row,
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


_SAMPLERS: dict[str, Callable[[Random, str, float], Case]] = {
    "single_object": _single,
    "two_object": _two,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}


def sample_case(kind: str, rng: Random, split: str = "train", aspect: float = 1.0) -> Case:
    """A random sentence of one of KINDS, with a random scene that shows exactly what it says.

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
