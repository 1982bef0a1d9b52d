"""Relations of shapes that leave no ambiguity."""

from .scene import SceneObject, box_of, normalized_offset, relation

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
