"""Scene graphs of the synthetic world: colored shapes on plain backgrounds, their relations, random layouts,
and the combinations held out of training.

Lengths are in units of the image's shorter side: an image of aspect a = width / height spans x in
[0, max(a, 1)] and y in [0, max(1 / a, 1)], with y pointing down.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ...blocks.errors import OptionError
from .shapes import EXTENTS, SHAPES

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
"""RGB of GenEval's ten colors, in its order."""

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

MAX_OBJECTS = 6
TRAINING_OBJECTS = 4
"""The most objects in a scene of the embedded models' training."""
SPLITS = ("train", "held_out", "any")
RELATIONS = ("left of", "right of", "above", "below")
MIRROR = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

_GAP = 0.05  # minimum distance between bounding boxes
_MARGIN = 0.03  # minimum distance of a bounding box to the image border
_LATTICE = 32  # positions and sizes are multiples of 1 / _LATTICE
_SIZES = {  # range by number of objects
    1: (0.20, 0.42),
    2: (0.19, 0.38),
    3: (0.18, 0.34),
    4: (0.18, 0.30),
    5: (0.17, 0.26),
    6: (0.16, 0.24),
}

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1."""


@dataclass(frozen=True)
class SceneObject:
    """One colored shape. (x, y) is the center of its bounding box, `size` the longer side of that box."""

    shape: str
    color: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """The contents of an image. `aspect` is width / height."""

    objects: tuple[SceneObject, ...]
    background: tuple[int, int, int]
    aspect: float = 1.0


def extent(aspect: float) -> tuple[float, float]:
    """(width, height) of an image of this aspect, in units of its shorter side."""
    return max(aspect, 1.0), max(1.0 / aspect, 1.0)


def box_of(obj: SceneObject) -> Box:
    """Bounding box of an object."""
    w, h = EXTENTS[obj.shape]
    dx, dy = w * obj.size / 2, h * obj.size / 2
    return obj.x - dx, obj.y - dy, obj.x + dx, obj.y + dy


def normalized_offset(a_box: Box, b_box: Box) -> tuple[float, float]:
    """GenEval's normalized offset (dx, dy) of box A from box B; (0, 0) where the boxes nearly coincide.

    Each component of the vector between the centers is reduced by a tenth of the two boxes' summed sides and
    divided by the length of the unreduced vector (GenEval, evaluation/evaluate_images.py,
    `relative_position`).
    """
    dx = (a_box[0] + a_box[2] - b_box[0] - b_box[2]) / 2
    dy = (a_box[1] + a_box[3] - b_box[1] - b_box[3]) / 2
    reduced_x = max(abs(dx) - 0.1 * (a_box[2] - a_box[0] + b_box[2] - b_box[0]), 0.0)
    reduced_y = max(abs(dy) - 0.1 * (a_box[3] - a_box[1] + b_box[3] - b_box[1]), 0.0)
    if reduced_x < 1e-3 and reduced_y < 1e-3:
        return 0.0, 0.0
    norm = (dx * dx + dy * dy) ** 0.5
    return (
        (reduced_x if dx > 0 else -reduced_x) / norm,
        (reduced_y if dy > 0 else -reduced_y) / norm,
    )


def relation(a_box: Box, b_box: Box) -> set[str]:
    """The relations of box A to box B by GenEval's rule: none, one, or two (on a diagonal)."""
    dx, dy = normalized_offset(a_box, b_box)
    conditions = (dx < -0.5, dx > 0.5, dy < -0.5, dy > 0.5)
    return {name for name, holds in zip(RELATIONS, conditions, strict=True) if holds}


def _held_out_colorings() -> frozenset[tuple[str, str]]:
    """Shape i is held out in color 3 i + 1 (mod 10): a tenth of all pairs, in eight different colors."""
    names = tuple(COLORS)
    return frozenset((shape, names[(3 * i + 1) % 10]) for i, shape in enumerate(SHAPES))


def _held_out_relations() -> frozenset[tuple[str, str, str]]:
    """One relation and its mirror are held out for 12 of the 28 pairs of shapes: 24 of 224 triples.

    The pairs are (i, i + 3 mod 8) and, for i < 4, (i, i + 4), so each shape is in three pairs. The k-th pair
    is held out in RELATIONS[(k + k // 4) mod 4], so each relation occurs three times before mirroring.
    """
    pairs = [(i, (i + 3) % 8) for i in range(8)] + [(i, i + 4) for i in range(4)]
    triples = set()
    for k, (i, j) in enumerate(pairs):
        name = RELATIONS[(k + k // 4) % 4]
        triples |= {(SHAPES[i], name, SHAPES[j]), (SHAPES[j], MIRROR[name], SHAPES[i])}
    return frozenset(triples)


HELD_OUT_COLORINGS = _held_out_colorings()
"""(shape, color) pairs that never occur in training scenes."""
HELD_OUT_RELATIONS = _held_out_relations()
"""(shape, relation, shape) triples that never occur in training scenes."""


def has_held_out_relation(objects: Sequence[SceneObject]) -> bool:
    """Whether any two of the objects are in a held-out relation."""
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
    """Whether the scene has an object in a held-out color, or two objects in a held-out relation."""
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
    """A random color for each shape; held-out colorings are only drawn for split "any"."""
    if split == "any":
        return [rng.choice(_ALL_COLORS) for _ in shapes]
    return [rng.choice(_TRAIN_COLORS[shape]) for shape in shapes]


def _on_lattice(rng: Random, low: float, high: float) -> float:
    """A uniformly random multiple of 1 / _LATTICE in [low, high]."""
    return rng.randint(math.ceil(low * _LATTICE), math.floor(high * _LATTICE)) / _LATTICE


def _try_place(
    rng: Random, shapes: Sequence[str], colors: Sequence[str], low: float, high: float, aspect: float
) -> tuple[SceneObject, ...] | None:
    """Place objects one after another by rejection sampling; None if one finds no room in 12 tries."""
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
    """A scene of 1 to MAX_OBJECTS objects with random positions, sizes and background.

    Bounding boxes are at least 0.05 apart and 0.03 from the border. Sizes are uniform in a range that shrinks
    with the number of objects, and at least 0.16. Centers and sizes are multiples of 1 / 32: fine enough for
    variety, coarse enough for a small codebook to reproduce sharp edges. Raises OptionError for any other
    number of objects.
    """
    if not 1 <= len(shapes) <= MAX_OBJECTS:
        raise OptionError(f"a scene holds 1 to {MAX_OBJECTS} objects, not {len(shapes)}")
    low, high = _SIZES[len(shapes)]
    while True:
        objects = _try_place(rng, shapes, colors, low, high, aspect)
        if objects is not None:
            return Scene(objects, rng.choice(BACKGROUNDS), aspect)


def sample_scene(rng: Random, split: str = "train", aspect: float = 1.0) -> Scene:
    """A random scene of 1 to 4 objects; shapes and colors may repeat.

    Split "train": no held-out combination; "held_out": at least one; "any": no restriction. Raises
    OptionError for other splits.
    """
    check_split(split)
    while True:
        shapes = [rng.choice(SHAPES) for _ in range(rng.randint(1, 4))]
        if len(shapes) > 1 and rng.random() < 0.25:
            repeats = rng.randint(2, len(shapes))
            shapes[:repeats] = shapes[:1] * repeats
        colors = sample_colors(rng, shapes, "train" if split == "train" else "any")
        scene = place(rng, shapes, colors, aspect)
        if split == "any" or is_held_out(scene) == (split == "held_out"):
            return scene
