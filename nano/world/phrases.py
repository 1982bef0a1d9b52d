"""Referring expressions for visual grounding with DeepSeek-VL2: phrases and the objects they refer to.

A phrase is only used where its targets are unambiguous; they are all the objects it fits, or none.
"""

from dataclasses import dataclass
from random import Random

from ...vl2.grounding import FULL, Box, format_boxes
from .relations import MAX_FALSE_OFFSET, clear_relation, directed_offset, matching, unique_objects
from .scene import (
    COLORS,
    HELD_OUT_COLORINGS,
    HELD_OUT_RELATIONS,
    RELATIONS,
    SHAPES,
    Scene,
    SceneObject,
    box_of,
    extent,
    is_held_out,
    reading_order,
)
from .wording import article, enumeration, plural

NO_MATCH = "It is not there."
"""The answer for a phrase without targets."""

KINDS = ("named", "related", "absent")

_RELATION_WORDINGS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


@dataclass(frozen=True)
class GroundingQuery:
    """A phrase and the objects it refers to. held_out: whether it names a held-out combination."""

    kind: str
    phrase: str
    targets: tuple[SceneObject, ...]
    held_out: bool


def normalized_box(obj: SceneObject, aspect: float = 1.0) -> tuple[int, int, int, int]:
    """The object's bounding box (x0, y0, x1, y1), each in 0..999 of the image's width or height."""
    width, height = extent(aspect)
    x0, y0, x1, y1 = box_of(obj)
    return tuple(round(v * FULL) for v in (x0 / width, y0 / height, x1 / width, y1 / height))  # pyright: ignore


def answer(query: GroundingQuery, aspect: float = 1.0) -> str:
    """The correct answer: the phrase with the boxes of its targets from left to right, or NO_MATCH."""
    if not query.targets:
        return NO_MATCH
    objects = sorted(query.targets, key=lambda obj: (obj.x, obj.y))
    return format_boxes([Box(query.phrase, 0, 0, 0, 0, normalized_box(obj, aspect)) for obj in objects])


def _noun_phrase(shape: str | None, color: str | None, rng: Random, many: bool) -> str:
    """For example "the red star", "red star", "the red thing" or "the stars"."""
    noun = shape or rng.choice(("thing", "shape"))
    noun = plural(noun) if many else noun
    phrase = noun if color is None else f"{color} {noun}"
    return phrase if rng.random() < 0.25 else f"the {phrase}"


def _named(scene: Scene, rng: Random) -> GroundingQuery:
    obj = rng.choice(scene.objects)
    shape, color = rng.choice(((obj.shape, None), (obj.shape, obj.color), (None, obj.color)))
    targets = matching(scene, shape, color)
    many = len(targets) > 1 and rng.random() < 0.7
    held_out = any((t.shape, t.color) in HELD_OUT_COLORINGS for t in targets)
    return GroundingQuery("named", _noun_phrase(shape, color, rng, many), targets, held_out)


def _absent(scene: Scene, rng: Random) -> GroundingQuery | None:
    """A phrase without targets, or None if the drawn phrase has some. Shape and color mostly occur in the
    scene, but not together."""
    shapes, colors = sorted({t.shape for t in scene.objects}), sorted({t.color for t in scene.objects})
    shape: str | None = rng.choice(shapes if rng.random() < 0.5 else SHAPES)
    color: str | None = rng.choice(colors if rng.random() < 0.5 else list(COLORS))
    shape, color = rng.choice(((shape, color), (shape, color), (shape, None), (None, color)))
    if matching(scene, shape, color):
        return None
    held_out = (shape, color) in HELD_OUT_COLORINGS
    return GroundingQuery("absent", _noun_phrase(shape, color, rng, many=False), (), held_out)


def _related(scene: Scene, rng: Random) -> GroundingQuery | None:
    """The objects of a shape in a clear relation to a unique object: "the circle left of the blue square".

    None if the relation of any object of that shape is unclear, or the scene has no other object.
    """
    anchors = unique_objects(scene)
    if not anchors or len(scene.objects) < 2:
        return None
    anchor = rng.choice(anchors)
    other_shapes = sorted({obj.shape for obj in scene.objects if obj is not anchor})
    shape, name = rng.choice(other_shapes), rng.choice(RELATIONS)
    candidates = [obj for obj in scene.objects if obj.shape == shape]
    targets = tuple(obj for obj in candidates if clear_relation(obj, anchor) == name)
    rejected = [obj for obj in candidates if obj not in targets]
    if any(directed_offset(obj, name, anchor) >= MAX_FALSE_OFFSET for obj in rejected):
        return None
    colors = {obj.color for obj in targets or candidates}
    color = colors.pop() if len(colors) == 1 and rng.random() < 0.4 else None
    if targets and any(obj.color == color for obj in rejected):
        return None
    noun = shape if color is None else f"{color} {shape}"
    anchor_noun = anchor.shape if rng.random() < 0.5 else f"{anchor.color} {anchor.shape}"
    phrase = f"the {noun} {rng.choice(_RELATION_WORDINGS[name])} the {anchor_noun}"
    held_out = (shape, name, anchor.shape) in HELD_OUT_RELATIONS or any(
        (obj.shape, obj.color) in HELD_OUT_COLORINGS for obj in (*targets, anchor)
    )
    return GroundingQuery("related", phrase, targets, held_out)


_SAMPLERS = {"named": _named, "related": _related, "absent": _absent}


def sample_query(scene: Scene, rng: Random, kind: str | None = None) -> GroundingQuery:
    """A random phrase of one of KINDS (a random one by default), with its targets in the scene.

    Phrases about scenes without held-out combinations never name one. If the kind is impossible for the
    scene, the query is of kind "named". Relations without targets are about as frequent as those with some.
    """
    clean = not is_held_out(scene)
    for name in (kind or rng.choice(KINDS), "named"):
        for _ in range(16):
            query = _SAMPLERS[name](scene, rng)
            # Most relations have no targets: keep only some of those.
            if query is None or (name == "related" and not query.targets and rng.random() < 0.6):
                continue
            if not (clean and query.held_out):
                return query
    raise AssertionError("objects can always be named")


def grounded_caption(scene: Scene) -> str:
    """A caption of the objects in reading order, each with its box."""

    def boxed(obj: SceneObject) -> str:
        name = article(f"{obj.color} {obj.shape}")
        return format_boxes([Box(name, 0, 0, 0, 0, normalized_box(obj, scene.aspect))])

    return enumeration([boxed(obj) for obj in reading_order(scene)])
