"""What is beyond dispute about a scene: things alone of their kind, clear relations, clear places."""

from .scene import Scene, Thing, box_of, extent, offset, relation
from .sentences import CLEAR

PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)

_MARGIN = 0.04  # a centre this close to a line of the grid has no clear place
UNCLEAR = 0.25  # a relation is clearly false only below this normalised offset
_AT = {"left": "on the left", "right": "on the right", "center": "in the center"}


def unique_things(scene: Scene) -> list[Thing]:
    """Things whose shape no other thing has."""
    shapes = [thing.shape for thing in scene.things]
    return [thing for thing in scene.things if shapes.count(thing.shape) == 1]


def strength(a: Thing, name: str, b: Thing) -> float:
    """The normalised offset of A from B in the direction that the relation names."""
    dx, dy = offset(box_of(a), box_of(b))
    return {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[name]


def clear_relation(a: Thing, b: Thing) -> str | None:
    """The relation of A to B if exactly one holds, and clearly."""
    names = relation(box_of(a), box_of(b))
    if len(names) != 1:
        return None
    name = next(iter(names))
    return name if strength(a, name, b) > CLEAR else None


def cell_of(thing: Thing, aspect: float) -> str | None:
    """The place of a thing's centre in a 3 x 3 grid, or None if it is within 0.04 of a line of the grid."""
    indices = []
    for at, length in zip((thing.x, thing.y), extent(aspect), strict=True):
        if min(abs(at - length / 3), abs(at - 2 * length / 3)) < _MARGIN:
            return None
        indices.append(int(at > length / 3) + int(at > 2 * length / 3))
    return PLACES[indices[1]][indices[0]]


def placed(scene: Scene) -> list[tuple[Thing, str]]:
    """Things that a place describes: "at the top" needs all other things to be clearly below the top row."""
    cells = [cell_of(thing, scene.aspect) for thing in scene.things]
    out = []
    for i, (thing, cell) in enumerate(zip(scene.things, cells, strict=True)):
        if cell is None:
            continue
        others = cells[:i] + cells[i + 1 :]
        edge = cell in ("top", "bottom", "left", "right")
        if not any(other is None or (cell in other if edge else other == cell) for other in others):
            out.append((thing, _AT.get(cell, f"at the {cell}")))
    return out
