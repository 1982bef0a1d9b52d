"""What is beyond dispute about a scene: things alone of their kind, clear relations, clear places."""

from .scene import Scene, SceneObject, box_of, extent, normalized_offset, relation
from .sentences import MIN_TRUE_OFFSET

GRID_CELLS = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)

_MARGIN = 0.04  # a centre this close to a line of the grid has no clear place
MAX_FALSE_OFFSET = 0.25  # a relation is clearly false only below this normalised offset
_CELL_PHRASES = {"left": "on the left", "right": "on the right", "center": "in the center"}


def unique_objects(scene: Scene) -> list[SceneObject]:
    """Things whose shape no other thing has."""
    shapes = [obj.shape for obj in scene.objects]
    return [obj for obj in scene.objects if shapes.count(obj.shape) == 1]


def directed_offset(a: SceneObject, name: str, b: SceneObject) -> float:
    """The normalised offset of A from B in the direction that the relation names."""
    dx, dy = normalized_offset(box_of(a), box_of(b))
    return {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[name]


def clear_relation(a: SceneObject, b: SceneObject) -> str | None:
    """The relation of A to B if exactly one holds, and clearly."""
    names = relation(box_of(a), box_of(b))
    if len(names) != 1:
        return None
    name = next(iter(names))
    return name if directed_offset(a, name, b) > MIN_TRUE_OFFSET else None


def grid_cell(obj: SceneObject, aspect: float) -> str | None:
    """The place of a thing's centre in a 3 x 3 grid, or None if it is within 0.04 of a line of the grid."""
    indices = []
    for at, length in zip((obj.x, obj.y), extent(aspect), strict=True):
        if min(abs(at - length / 3), abs(at - 2 * length / 3)) < _MARGIN:
            return None
        indices.append(int(at > length / 3) + int(at > 2 * length / 3))
    return GRID_CELLS[indices[1]][indices[0]]


def located_objects(scene: Scene) -> list[tuple[SceneObject, str]]:
    """Things that a place describes: "at the top" needs all other things to be clearly below the top row."""
    cells = [grid_cell(obj, scene.aspect) for obj in scene.objects]
    out = []
    for i, (obj, cell) in enumerate(zip(scene.objects, cells, strict=True)):
        if cell is None:
            continue
        others = cells[:i] + cells[i + 1 :]
        edge = cell in ("top", "bottom", "left", "right")
        if not any(other is None or (cell in other if edge else other == cell) for other in others):
            out.append((obj, _CELL_PHRASES.get(cell, f"at the {cell}")))
    return out
