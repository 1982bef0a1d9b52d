"""A picture of the world of things as questions see it: names, clear relations and clear positions."""

from random import Random

from .catalog import things
from .names import PAIRED, article
from .painting import Picture
from .relations import GRID_CELLS, MAX_FALSE_OFFSET, MIN_TRUE_OFFSET
from .requests import DEPTHS, MIN_VISIBLE, Seen, holds, overlap
from .scene import Box, normalized_offset, relation

_APART = 0.02  # shared area from which on left, right, above and below are unclear
_CELL_MARGIN = 0.05  # of a side: a center this close to a line of the grid has no clear position
_OTHER_NAMES = 0.15  # probability of another name of a thing that has some
PLACES = {"meadow": "in a meadow", "room": "in a room", "street": "in the street", "table": "on a table"}
"""Phrases for places with a ground."""
_ASKED = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "in front of": ("in front of",),
    "behind": ("behind",),
    "inside": ("inside", "in"),
}


def named(one: Seen, rng: Random) -> str:
    """A thing with its article: "the cat", sometimes by another of its names."""
    also = things()[one.thing].also
    return f"the {rng.choice(also) if also and rng.random() < _OTHER_NAMES else one.thing}"


def verb(one: Seen, single: str = "is", many: str = "are") -> str:
    """The verb of a thing: "are" of scissors and skis."""
    return many if one.thing in PAIRED else single


class View:
    """seen: the things that are visible enough. unique: those whose class occurs once."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.height, self.width = picture.pixels_HW3.shape[:2]
        self.seen = [one for one in picture.seen if one.visible >= MIN_VISIBLE]
        self.unique = [one for one in self.seen if len(self.matching(one.thing)) == 1]

    def matching(self, thing: str | None = None, color: str | None = None) -> list[Seen]:
        """The things of a class and a color; None matches any."""
        return [one for one in self.seen if thing in (None, one.thing) and color in (None, one.color)]

    def area(self, one: Seen) -> float:
        """Of a thing's box, in pixels."""
        x0, y0, x1, y1 = one.box
        return (x1 - x0) * (y1 - y0)

    def relation(self, a: Seen, b: Seen) -> str | None:
        """The relation of A to B if exactly one holds, and clearly; else None."""
        depths = [name for name in DEPTHS if holds(a, name, b)]
        if depths:
            return "inside" if "inside" in depths else depths[0]
        names = relation(a.box, b.box)
        if len(names) != 1 or overlap(a.box, b.box) > _APART or holds(b, "inside", a):
            return None
        name = next(iter(names))
        return name if self._offset(a, name, b) > MIN_TRUE_OFFSET else None

    def denies(self, a: Seen, name: str, b: Seen) -> bool:
        """Whether A is clearly not `name` B."""
        if name in DEPTHS:
            return overlap(a.box, b.box) == 0 or (holds(b, name, a) and not holds(a, name, b))
        return overlap(a.box, b.box) <= _APART and self._offset(a, name, b) < MAX_FALSE_OFFSET

    def _offset(self, a: Seen, name: str, b: Seen) -> float:
        dx, dy = normalized_offset(a.box, b.box)
        return {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[name]

    def cell(self, box: Box) -> str | None:
        """The cell of a 3 x 3 grid with the center of a box; None if it is near a border of the cell."""
        indices = []
        for low, high, length in ((box[0], box[2], self.width), (box[1], box[3], self.height)):
            center = (low + high) / 2 / length
            if min(abs(center - 1 / 3), abs(center - 2 / 3)) < _CELL_MARGIN:
                return None
            indices.append(int(center > 1 / 3) + int(center > 2 / 3))
        return GRID_CELLS[indices[1]][indices[0]]

    def absent(self, rng: Random) -> str:
        """A thing that the picture does not show, mostly of a kind that it shows."""
        shown = {one.thing for one in self.seen}
        kinds = {things()[name].kind for name in shown}
        near = [name for name, known in things().items() if known.kind in kinds and name not in shown]
        others = [name for name in things() if name not in shown]
        return rng.choice(near if near and rng.random() < 0.6 else others)

    def article(self, thing: str, color: str | None = None) -> str:
        """ "a cat", "an orange cat"."""
        return article(f"{color} {thing}" if color else thing)

    def link_words(self, name: str, rng: Random) -> str:
        """A phrase for a relation."""
        return rng.choice(_ASKED[name])
