"""The small world: coloured shapes on plain backgrounds, how they are placed, and what stays out of training.

Lengths are in units of the picture's shorter side: a picture of aspect a = width / height spans x in
[0, max(a, 1)] and y in [0, max(1 / a, 1)], y pointing down.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ...blocks.errors import OptionError
from .shapes import EXTENTS, SHAPES

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "HELD_OUT_COLORINGS",
    "HELD_OUT_RELATIONS",
    "MAX_OBJECTS",
    "MIRROR",
    "RELATIONS",
    "SHAPES",
    "SPLITS",
    "Box",
    "Scene",
    "SceneObject",
    "box_of",
    "extent",
    "is_held_out",
    "normalized_offset",
    "place",
    "reading_order",
    "relation",
    "sample_colors",
]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (218, 28, 36),
    "orange": (252, 128, 8),
    "yellow": (250, 222, 38),
    "green": (28, 148, 62),
    "blue": (32, 74, 216),
    "purple": (132, 42, 172),
    "pink": (252, 134, 190),
    "brown": (118, 66, 28),
    "black": (18, 18, 18),
    "white": (253, 253, 253),
}
"""GenEval's ten colours, in its order."""

BACKGROUNDS: tuple[tuple[int, int, int], ...] = (
    (204, 208, 212),  # light grey
    (128, 132, 138),  # grey
    (142, 204, 244),  # sky
    (164, 224, 174),  # mint
    (246, 220, 172),  # cream
    (176, 152, 222),  # lavender
    (188, 158, 112),  # tan
    (56, 72, 98),  # slate
    (52, 150, 158),  # teal
)

MAX_OBJECTS = 4
SPLITS = ("train", "held_out", "any")
RELATIONS = ("left of", "right of", "above", "below")
MIRROR = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

_GAP = 0.05
_MARGIN = 0.03
_LATTICE = 32
_SIZES = {1: (0.20, 0.42), 2: (0.19, 0.38), 3: (0.18, 0.34), 4: (0.18, 0.30)}

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape: the centre of its bounding box and the box's longer side."""

    shape: str
    color: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `aspect` is width / height."""

    objects: tuple[SceneObject, ...]
    background: tuple[int, int, int]
    aspect: float = 1.0


def extent(aspect: float) -> tuple[float, float]:
    """Width and height of a picture, in units of its shorter side."""
    return max(aspect, 1.0), max(1.0 / aspect, 1.0)


def box_of(obj: SceneObject) -> Box:
    """(x0, y0, x1, y1) of the bounding box."""
    w, h = EXTENTS[obj.shape]
    dx, dy = w * obj.size / 2, h * obj.size / 2
    return obj.x - dx, obj.y - dy, obj.x + dx, obj.y + dy


def reading_order(scene: Scene) -> list[SceneObject]:
    """The things row by row (a row is a third of the shorter side), each row from left to right."""
    return sorted(scene.objects, key=lambda obj: (round(obj.y * 3), obj.x))


def normalized_offset(a_box: Box, b_box: Box) -> tuple[float, float]:
    """GenEval's normalised offset (dx, dy) of A from B; (0, 0) where the boxes nearly coincide.

    Each component of the distance of the centres loses a tenth of both boxes' sides, and is then divided by
    the length of the distance as it was (GenEval, evaluation/evaluate_images.py, `relative_position`).
    """
    off_x = (a_box[0] + a_box[2] - b_box[0] - b_box[2]) / 2
    off_y = (a_box[1] + a_box[3] - b_box[1] - b_box[3]) / 2
    rev_x = max(abs(off_x) - 0.1 * (a_box[2] - a_box[0] + b_box[2] - b_box[0]), 0.0)
    rev_y = max(abs(off_y) - 0.1 * (a_box[3] - a_box[1] + b_box[3] - b_box[1]), 0.0)
    if rev_x < 1e-3 and rev_y < 1e-3:
        return 0.0, 0.0
    norm = (off_x * off_x + off_y * off_y) ** 0.5
    return (rev_x if off_x > 0 else -rev_x) / norm, (rev_y if off_y > 0 else -rev_y) / norm


def relation(a_box: Box, b_box: Box) -> set[str]:
    """The relations in which A stands to B by GenEval's rule: none, one, or two on a diagonal."""
    dx, dy = normalized_offset(a_box, b_box)
    holds = (dx < -0.5, dx > 0.5, dy < -0.5, dy > 0.5)
    return {name for name, true in zip(RELATIONS, holds, strict=True) if true}


def _held_out_colorings() -> frozenset[tuple[str, str]]:
    """Shape i loses colour 3 i + 1 (mod 10): a tenth of the pairs, eight different colours."""
    names = tuple(COLORS)
    return frozenset((shape, names[(3 * i + 1) % 10]) for i, shape in enumerate(SHAPES))


def _held_out_relations() -> frozenset[tuple[str, str, str]]:
    """Twelve of the 28 pairs of shapes lose one relation and its mirror: 24 of 224 triples.

    The pairs are shape i with i + 3 (mod 8) and, for i < 4, with i + 4: each shape is in three of them. The
    k-th pair loses RELATIONS[(k + k // 4) mod 4], so each relation is lost three times before mirroring.
    """
    pairs = [(i, (i + 3) % 8) for i in range(8)] + [(i, i + 4) for i in range(4)]
    out = set()
    for k, (i, j) in enumerate(pairs):
        name = RELATIONS[(k + k // 4) % 4]
        out |= {(SHAPES[i], name, SHAPES[j]), (SHAPES[j], MIRROR[name], SHAPES[i])}
    return frozenset(out)


HELD_OUT_COLORINGS = _held_out_colorings()
HELD_OUT_RELATIONS = _held_out_relations()


def has_held_out_relation(objects: Sequence[SceneObject]) -> bool:
    """Whether two of the things stand in a held-out relation."""
    boxes = [box_of(obj) for obj in objects]
    for i, a in enumerate(objects):
        for j in range(i):
            b = objects[j]
            if a.shape != b.shape and any(
                (a.shape, name, b.shape) in HELD_OUT_RELATIONS for name in relation(boxes[i], boxes[j])
            ):
                return True
    return False


def is_held_out(scene: Scene) -> bool:
    """Whether the scene holds a held-out colouring, or two things in a held-out relation."""
    if any((obj.shape, obj.color) in HELD_OUT_COLORINGS for obj in scene.objects):
        return True
    return has_held_out_relation(scene.objects)


def check_split(split: str) -> None:
    """Raise OptionError unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise OptionError(f"split {split!r} is unknown; accepted: {', '.join(SPLITS)}")


_ALL_COLORS = tuple(COLORS)
_TRAIN_COLORS = {s: tuple(c for c in COLORS if (s, c) not in HELD_OUT_COLORINGS) for s in SHAPES}


def sample_colors(rng: Random, shapes: Sequence[str], split: str) -> list[str]:
    """A random colour for each shape; only split "any" gives held-out colourings."""
    if split == "any":
        return [rng.choice(_ALL_COLORS) for _ in shapes]
    return [rng.choice(_TRAIN_COLORS[shape]) for shape in shapes]


def _on_lattice(rng: Random, low: float, high: float) -> float:
    """A random multiple of 1 / _LATTICE in [low, high]."""
    return rng.randint(math.ceil(low * _LATTICE), math.floor(high * _LATTICE)) / _LATTICE


def _try_place(
    rng: Random, shapes: Sequence[str], colors: Sequence[str], low: float, high: float, aspect: float
) -> tuple[SceneObject, ...] | None:
    width, height = extent(aspect)
    boxes: list[Box] = []
    objects = []
    for shape, color in zip(shapes, colors, strict=True):
        size = _on_lattice(rng, low, high)
        w, h = EXTENTS[shape]
        dx, dy = w * size / 2, h * size / 2
        for _ in range(12):
            x = _on_lattice(rng, _MARGIN + dx, width - _MARGIN - dx)
            y = _on_lattice(rng, _MARGIN + dy, height - _MARGIN - dy)
            x0, y0, x1, y1 = x - dx - _GAP, y - dy - _GAP, x + dx + _GAP, y + dy + _GAP
            if all(x1 <= b[0] or x0 >= b[2] or y1 <= b[1] or y0 >= b[3] for b in boxes):
                break
        else:
            return None
        boxes.append((x - dx, y - dy, x + dx, y + dy))
        objects.append(SceneObject(shape, color, x, y, size))
    return tuple(objects)


def place(rng: Random, shapes: Sequence[str], colors: Sequence[str], aspect: float = 1.0) -> Scene:
    """A scene of 1 to MAX_THINGS things at random places and sizes on a random background.

    Bounding boxes keep a gap of 0.05 between them and a margin of 0.03 to the border; sizes are uniform
    within limits that shrink as the number of things grows, and never below 0.18. Centres and sizes are
    multiples of 1 / 32: fine enough to vary freely, coarse enough for a small codebook to draw edges crisply.
    """
    if not 1 <= len(shapes) <= MAX_OBJECTS:
        raise OptionError(f"a scene holds 1 to {MAX_OBJECTS} things, not {len(shapes)}")
    low, high = _SIZES[len(shapes)]
    while True:
        objects = _try_place(rng, shapes, colors, low, high, aspect)
        if objects is not None:
            return Scene(objects, rng.choice(BACKGROUNDS), aspect)


def place_in_quadrants(rng: Random, shapes: Sequence[str], colors: Sequence[str]) -> Scene:
    """A square scene like those of `place`, but each thing lies within its own quarter of the picture."""
    assert len(shapes) <= MAX_OBJECTS
    low, high = _SIZES[len(shapes)]
    objects = []
    for shape, color, quarter in zip(shapes, colors, rng.sample(range(4), len(shapes)), strict=True):
        size = _on_lattice(rng, low, high)
        centre = []
        for side, begin in zip(EXTENTS[shape], (quarter % 2 / 2, quarter // 2 / 2), strict=True):
            half = side * size / 2
            first = begin + (_GAP / 2 if begin else _MARGIN) + half
            last = begin + 0.5 - (_MARGIN if begin else _GAP / 2) - half
            centre.append(_on_lattice(rng, first, last))
        objects.append(SceneObject(shape, color, centre[0], centre[1], size))
    return Scene(tuple(objects), rng.choice(BACKGROUNDS))
