"""Phrases that name things of a scene, with the boxes of what they name: DeepSeek-VL2 locates such.

A phrase is used only where it is beyond dispute which things it names: all of those, or none of them.
"""

from dataclasses import dataclass
from random import Random

from ...vl2.grounding import FULL, Box, format_boxes
from .relations import MAX_FALSE_OFFSET, clear_relation, directed_offset, unique_objects
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
"""The answer about a phrase that names nothing in the picture."""

KINDS = ("named", "related", "absent")

_SAID = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


@dataclass(frozen=True)
class GroundingQuery:
    """`held_out`: the phrase names a thing or relation that was left out of training."""

    kind: str
    phrase: str
    targets: tuple[SceneObject, ...]
    held_out: bool


def normalized_box(obj: SceneObject, aspect: float = 1.0) -> tuple[int, int, int, int]:
    """The thing's box in 0..999 of the picture."""
    width, height = extent(aspect)
    x0, y0, x1, y1 = box_of(obj)
    return tuple(round(v * FULL) for v in (x0 / width, y0 / height, x1 / width, y1 / height))  # pyright: ignore


def answer(query: GroundingQuery, aspect: float = 1.0) -> str:
    """The right answer: the phrase with its boxes, from left to right, or that there is none."""
    if not query.targets:
        return NO_MATCH
    objects = sorted(query.targets, key=lambda obj: (obj.x, obj.y))
    return format_boxes([Box(query.phrase, 0, 0, 0, 0, normalized_box(obj, aspect)) for obj in objects])


def _matching(scene: Scene, shape: str | None, color: str | None) -> tuple[SceneObject, ...]:
    return tuple(t for t in scene.objects if shape in (None, t.shape) and color in (None, t.color))


def _noun(shape: str | None, color: str | None, rng: Random, many: bool) -> str:
    """ "the red star", "red star", "the red thing", "the stars"."""
    noun = shape or rng.choice(("thing", "shape"))
    noun = plural(noun) if many else noun
    words = noun if color is None else f"{color} {noun}"
    return words if rng.random() < 0.25 else f"the {words}"


def _named(scene: Scene, rng: Random) -> GroundingQuery:
    obj = rng.choice(scene.objects)
    shape, color = rng.choice(((obj.shape, None), (obj.shape, obj.color), (None, obj.color)))
    found = _matching(scene, shape, color)
    many = len(found) > 1 and rng.random() < 0.7
    held_out = any((t.shape, t.color) in HELD_OUT_COLORINGS for t in found)
    return GroundingQuery("named", _noun(shape, color, rng, many), found, held_out)


def _absent(scene: Scene, rng: Random) -> GroundingQuery | None:
    """Nothing of that name; where it has a colour, the shape or the colour is mostly one of the picture's."""
    shapes, colors = sorted({t.shape for t in scene.objects}), sorted({t.color for t in scene.objects})
    shape: str | None = rng.choice(shapes if rng.random() < 0.5 else SHAPES)
    color: str | None = rng.choice(colors if rng.random() < 0.5 else list(COLORS))
    shape, color = rng.choice(((shape, color), (shape, color), (shape, None), (None, color)))
    if _matching(scene, shape, color):
        return None
    named = (shape, color)
    return GroundingQuery("absent", _noun(shape, color, rng, many=False), (), named in HELD_OUT_COLORINGS)


def _related(scene: Scene, rng: Random) -> GroundingQuery | None:
    """ "the circle left of the blue square": of a shape, those that stand clearly so to another shape."""
    anchors = unique_objects(scene)
    if not anchors or len(scene.objects) < 2:
        return None
    b = rng.choice(anchors)
    others = sorted({t.shape for t in scene.objects if t is not b})
    shape, name = rng.choice(others), rng.choice(RELATIONS)
    objects = [t for t in scene.objects if t.shape == shape]
    found = tuple(t for t in objects if clear_relation(t, b) == name)
    if any(t not in found and directed_offset(t, name, b) >= MAX_FALSE_OFFSET for t in objects):
        return None
    colors = {t.color for t in found or objects}
    tinted = len(colors) == 1 and rng.random() < 0.4
    color = colors.pop() if tinted else None
    if tinted and any(t.color == color and t not in found for t in objects) and found:
        return None
    noun = shape if color is None else f"{color} {shape}"
    anchor = b.shape if rng.random() < 0.5 else f"{b.color} {b.shape}"
    phrase = f"the {noun} {rng.choice(_SAID[name])} the {anchor}"
    held_out = (shape, name, b.shape) in HELD_OUT_RELATIONS or any(
        (t.shape, t.color) in HELD_OUT_COLORINGS for t in (*found, b)
    )
    return GroundingQuery("related", phrase, found, held_out)


_SAMPLERS = {"named": _named, "related": _related, "absent": _absent}


def sample_query(scene: Scene, rng: Random, kind: str | None = None) -> GroundingQuery:
    """A phrase of one of KINDS (a random one by default), and what it names in the scene.

    Of a scene without held-out combinations no phrase names one. Where the kind can't be had, another one
    is given and reported; relations that hold for nothing are asked for about as often as those that hold.
    """
    clean = not is_held_out(scene)
    wanted = kind or rng.choice(KINDS)
    for name in (wanted, "named"):
        for _ in range(16):
            query = _SAMPLERS[name](scene, rng)
            # Most relations hold for nothing: of those only some are taken.
            if query is None or (name == "related" and not query.targets and rng.random() < 0.6):
                continue
            if not (clean and query.held_out):
                return query
    raise AssertionError("a scene's things can always be named")


def grounded_caption(scene: Scene) -> str:
    """A grounded caption: the things in reading order, each with its box."""

    def boxed(obj: SceneObject) -> str:
        name = article(f"{obj.color} {obj.shape}")
        return format_boxes([Box(name, 0, 0, 0, 0, normalized_box(obj, scene.aspect))])

    return enumeration([boxed(obj) for obj in reading_order(scene)])
