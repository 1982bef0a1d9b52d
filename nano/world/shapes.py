"""The eight shapes as polygons, and their signed distance fields.

Every outline is a closed polygon (curves are sampled densely) whose bounding box is centered on the origin
and has a longer side of 1. The y axis points down, as in images.
"""

import math
from functools import lru_cache

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "hexagon")

TEXELS = 256
"""Side of one shape's signed distance field, in texels."""
HALF_SPAN = 0.7
"""A distance field covers [-HALF_SPAN, HALF_SPAN] along both axes, in units of the shape's size."""

_CURVE_POINTS = 160
_STAR_INNER = (
    0.42  # ratio of the inner to the outer radius; at a pentagram's 0.382, arms are too thin at 23 px
)
_DIAMOND_WIDTH = 0.68  # width / height; clearly taller than wide, so not mistaken for a hexagon or square
_CROSS_ARM = 0.34  # width of an arm / its length

Outline = list[tuple[float, float]]


def _normalize(points: Outline) -> Outline:
    """The outline with its bounding box centered on the origin and scaled to a longer side of 1."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    scale = 1.0 / max(max(xs) - min(xs), max(ys) - min(ys))
    mid_x, mid_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    return [((x - mid_x) * scale, (y - mid_y) * scale) for x, y in points]


def _radial_polygon(count: int, start: float = 0.0, radii: tuple[float, ...] = (1.0,)) -> Outline:
    """`count` vertices at equal angles from `start` on (in radians), at radii that cycle through `radii`."""
    return [
        (
            radii[i % len(radii)] * math.cos(start + 2 * math.pi * i / count),
            radii[i % len(radii)] * math.sin(start + 2 * math.pi * i / count),
        )
        for i in range(count)
    ]


def _heart() -> Outline:
    """The parametric heart curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t."""
    points = []
    for i in range(_CURVE_POINTS):
        t = 2 * math.pi * i / _CURVE_POINTS
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((16 * math.sin(t) ** 3, -y))
    return points


def _cross() -> Outline:
    a, b = _CROSS_ARM / 2, 0.5
    quarter = [(-a, -b), (a, -b), (a, -a)]
    half = quarter + [(-y, x) for x, y in quarter]
    return half + [(-x, -y) for x, y in half]


_UP = -math.pi / 2

OUTLINES: dict[str, Outline] = {
    name: _normalize(points)
    for name, points in {
        "circle": _radial_polygon(_CURVE_POINTS),
        "square": [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
        "triangle": _radial_polygon(3, _UP),
        "star": _radial_polygon(10, _UP, (1.0, _STAR_INNER)),
        "heart": _heart(),
        "diamond": [(0.0, -1.0), (_DIAMOND_WIDTH, 0.0), (0.0, 1.0), (-_DIAMOND_WIDTH, 0.0)],
        "cross": _cross(),
        "hexagon": _radial_polygon(6),
    }.items()
}

EXTENTS: dict[str, tuple[float, float]] = {
    name: (2 * max(x for x, _ in points), 2 * max(y for _, y in points)) for name, points in OUTLINES.items()
}
"""(width, height) of each shape's bounding box at size 1; the larger of the two is 1."""


def signed_distance(outline: Outline, points: np.ndarray) -> np.ndarray:
    """Signed Euclidean distance of `points` [N, 2] to a closed polygon, negative inside: float64 [N].

    The magnitude is the distance to the nearest edge; the sign follows the even-odd rule.
    """
    squared = np.full(len(points), np.inf)
    inside = np.zeros(len(points), dtype=bool)
    x, y = points[:, 0], points[:, 1]
    for (ax, ay), (bx, by) in zip(outline, [*outline[1:], outline[0]], strict=True):
        ex, ey = bx - ax, by - ay
        length2 = ex * ex + ey * ey
        if length2 == 0.0:
            continue
        t = np.clip(((x - ax) * ex + (y - ay) * ey) / length2, 0.0, 1.0)
        squared = np.minimum(squared, (x - ax - t * ex) ** 2 + (y - ay - t * ey) ** 2)
        if ey != 0.0:
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * ex / ey)
    return np.where(inside, -1.0, 1.0) * np.sqrt(squared)


@lru_cache(maxsize=1)
def distance_atlas() -> np.ndarray:
    """The signed distance fields of SHAPES, stacked vertically: float32 [len(SHAPES) * TEXELS, TEXELS].

    Each texel holds the signed distance at its center, in units of the shape's size.
    """
    axis = ((np.arange(TEXELS) + 0.5) / TEXELS * 2 - 1) * HALF_SPAN
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    fields = [signed_distance(OUTLINES[name], points).reshape(TEXELS, TEXELS) for name in SHAPES]
    return np.concatenate(fields).astype(np.float32)
