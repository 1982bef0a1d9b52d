"""Predicates on scenes that leave no ambiguity: unique objects, clear relations and clear positions."""

from .scene import Scene, SceneObject, box_of, extent, normalized_offset, relation

GRID_CELLS = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
"""Names of the cells of a 3 x 3 grid over the image, row by row."""
MIN_TRUE_OFFSET = 0.75
"""A relation is clear, and can be stated, above this normalized offset (GenEval's own threshold is 0.5)."""
MAX_FALSE_OFFSET = 0.25
"""A relation is clearly false, and can be denied, only below this normalized offset."""

_CELL_MARGIN = 0.04  # an object whose center is this close to a grid line has no clear position
_CELL_PHRASES = {"left": "on the left", "right": "on the right", "center": "in the center"}


def matching(scene: Scene, shape: str | None, color: str | None) -> tuple[SceneObject, ...]:
    """Objects of a shape and a color; None matches any."""
    return tuple(obj for obj in scene.objects if shape in (None, obj.shape) and color in (None, obj.color))


def unique_objects(scene: Scene) -> list[SceneObject]:
    """Objects whose shape occurs once in the scene."""
    shapes = [obj.shape for obj in scene.objects]
    return [obj for obj in scene.objects if shapes.count(obj.shape) == 1]


def directed_offset(a: SceneObject, name: str, b: SceneObject) -> float:
    """Normalized offset of A from B along the direction of the relation `name`."""
    dx, dy = normalized_offset(box_of(a), box_of(b))
    return {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[name]


def clear_relation(a: SceneObject, b: SceneObject) -> str | None:
    """The relation of A to B if exactly one holds, and with more than MIN_TRUE_OFFSET; otherwise None."""
    names = relation(box_of(a), box_of(b))
    if len(names) != 1:
        return None
    name = next(iter(names))
    return name if directed_offset(a, name, b) > MIN_TRUE_OFFSET else None


def grid_cell(obj: SceneObject, aspect: float) -> str | None:
    """The grid cell of the object's center, or None if the center is within 0.04 of a grid line."""
    indices = []
    for center, length in zip((obj.x, obj.y), extent(aspect), strict=True):
        if min(abs(center - length / 3), abs(center - 2 * length / 3)) < _CELL_MARGIN:
            return None
        indices.append(int(center > length / 3) + int(center > 2 * length / 3))
    return GRID_CELLS[indices[1]][indices[0]]


def located_objects(scene: Scene) -> list[tuple[SceneObject, str]]:
    """Objects identified by their position alone, each with its position as a phrase ("at the top").

    "at the top" requires every other object to be clearly outside the top row, "at the top left" only that
    no other object is in, or near the border of, that cell.
    """
    cells = [grid_cell(obj, scene.aspect) for obj in scene.objects]
    located = []
    for i, (obj, cell) in enumerate(zip(scene.objects, cells, strict=True)):
        if cell is None:
            continue
        others = cells[:i] + cells[i + 1 :]
        is_side = cell in ("top", "bottom", "left", "right")
        if not any(other is None or (cell in other if is_side else other == cell) for other in others):
            located.append((obj, _CELL_PHRASES.get(cell, f"at the {cell}")))
    return located
