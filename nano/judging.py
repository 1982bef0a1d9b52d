"""Whether a picture shows what a sentence of the small world says, and nothing else.

Stricter than GenEval's rule, which the scores go by: this one chooses what to learn from.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from .clarity import clear_relation
from .detector import UNKNOWN, Detection, detect
from .shapes import EXTENTS
from .world import Scene, Thing, is_held_out


def as_thing(found: Detection, side: int) -> Thing:
    """What was detected in a square picture of `side` pixels, in the world's units."""
    x0, y0, x1, y1 = (value / side for value in found.box)
    size = (x1 - x0) / EXTENTS[found.label][0]
    return Thing(found.label, found.color, (x0 + x1) / 2, (y0 + y1) / 2, size)


def fulfils(metadata: Mapping[str, Any], things: Sequence[Thing]) -> bool:
    """Whether the things are those of a sentence's row, no more and no fewer, in clear relations."""
    clauses, matched = metadata["include"], []
    for clause in clauses:
        fitting = [
            t for t in things if t.shape == clause["class"] and t.color == clause.get("color", t.color)
        ]
        if len(fitting) != clause["count"]:
            return False
        matched.append(fitting)
    for clause, fitting in zip(clauses, matched, strict=True):
        if "position" in clause:
            name, target = clause["position"]
            if any(clear_relation(a, b) != name for a in fitting for b in matched[target]):
                return False
    return len(things) == sum(clause["count"] for clause in clauses)


def is_right(picture: Image.Image, metadata: Mapping[str, Any]) -> bool:
    """Whether a square picture shows a sentence's row and no combination that training leaves out."""
    found = detect(picture)
    if any(UNKNOWN in (one.label, one.color) for one in found):
        return False
    things = tuple(as_thing(one, picture.width) for one in found)
    return fulfils(metadata, things) and not is_held_out(Scene(things, (0, 0, 0)))
