"""Random layouts of the world of things: where each thing of a request is drawn, in pixels.

Things stand on the ground of a place, or float where a request has one above another. They keep apart from
each other, but for those in front of, behind or inside another.
"""

from random import Random

import numpy as np

from .catalog import PAINTS, Place, places, things
from .pieces import ANY, Layout, Piece, Variety
from .requests import DEPTHS, SIZES, Group, Link, Request, held_out_coloring
from .scene import RELATIONS, Box, normalized_offset, relation
from .sprites import Sprite

CLEAR_OFFSET = 0.7
"""The least normalized offset of a relation that a sentence names; GenEval's own threshold is 0.5."""

_CROWD = {1: 1.4, 2: 1.12, 3: 0.95, 4: 0.85, 5: 0.76, 6: 0.7}  # factor of all sizes by the number of things
_SMALLEST, _LARGEST = 0.15, 0.86  # of the shorter side
_PLAIN_SMALLEST = 0.25  # the same without variety, but of things that are asked for as small
_PLAIN_COLORS, _PLAIN_REAL = 4, 0.35  # without variety: colors of plain backgrounds, share of real places
_GAP, _MARGIN = 0.02, 0.02  # of the shorter side: between boxes, and to the border
_TRIES = 40  # free positions tried for one thing before the whole layout is drawn anew
_SHRINK = 0.95  # factor of all sizes from one attempt to the next
_FLOATING_FROM = 18  # attempts on the ground before things float
_USUAL = 0.6  # probability that a thing without a named color has one of its usual colors
_TILTED = 0.15  # probability that a floating thing is tilted
_ROWS = {
    1: ((1,),), 2: ((2,),), 3: ((3,), (1, 2), (2, 1)), 4: ((2, 2),), 5: ((2, 3), (3, 2)), 6: ((3, 3),),
}  # fmt: skip  # things of each row
_CROWDED = 5  # things from which on rows need a place without ground


class _NoRoom(Exception):
    """An attempt found no position for a thing."""


class Arranger:
    """Draws layouts of one request at random: each call of `attempt` another one, with smaller and smaller
    things. split: "train" gives unnamed things no color that is held out for them."""

    def __init__(
        self,
        request: Request,
        rng: Random,
        width: int,
        height: int,
        split: str = "any",
        variety: Variety = ANY,
    ) -> None:
        self.request, self.rng, self.split = request, rng, split
        self.paired = len(request.links) == 1 and request.links[0].name in RELATIONS and request.total == 2
        self.in_parts = not variety.varied and (self.paired or not request.links)
        self.width, self.height, self.side = width, height, min(width, height)
        self.varied, self.lattice, self.cell = variety.varied, variety.lattice, self.side / variety.lattice
        self.vertical = bool({link.name for link in request.links} & {"above", "below"})
        self.attempts = 0
        self.place = self._choose_place()
        self.pieces: list[Piece] = []

    def _choose_place(self) -> Place:
        """The named place, or mostly one where most of the things are usual."""
        if self.request.place:
            return places()[self.request.place]
        flat, real = ([p for p in places().values() if (p.ground is None) == none] for none in (True, False))
        crowded = self.in_parts and self.request.total >= _CROWDED
        floating = 0.3 if self.varied else 1 - _PLAIN_REAL
        if self.rng.random() < (1 if crowded else max(0.75, floating) if self.vertical else floating):
            return self.rng.choice(flat) if self.varied else places()["plain"]
        kinds = [things()[group.thing].kind for group in self.request.groups]
        most = max(sum(kind in place.fits for kind in kinds) for place in real)
        usual = [place for place in real if sum(kind in place.fits for kind in kinds) == most]
        return self.rng.choice(usual if self.rng.random() < 0.85 else real)

    def attempt(self) -> Layout | None:
        """A layout, or None if something found no room."""
        self.attempts += 1
        self.pieces = []
        self.scale = _CROWD[self.request.total] * _SHRINK ** (max(0, self.attempts - 3) / 2)
        standing = self.place.ground is not None and not self.vertical
        self.grounded = standing and self.attempts < _FLOATING_FROM
        self.parts = self._parts() if self.in_parts else []
        try:
            for index in self._order():
                for number in range(self.request.groups[index].count):
                    self._add(index, number)
        except _NoRoom:
            return None
        variants, colors = range(len(self.place.variants)), self.place.colors
        if not self.varied:
            variants, colors = variants[:1], colors[: 1 if self.place.ground else _PLAIN_COLORS]
        pieces = tuple(sorted(self.pieces, key=lambda piece: piece.key))
        return Layout(pieces, self.place, self.rng.choice(variants), self.rng.choice(colors))

    def _parts(self) -> list[Box]:
        """As many parts of the picture as there are things, row by row; or on the two sides of a relation."""
        total, link = self.request.total, self.request.links[0] if self.paired else None
        rows = (total,) if self.grounded else self.rng.choice(_ROWS[total])
        rows = (1, 1) if self.paired and self.vertical else rows
        high = self.height / len(rows)
        parts = [
            (self.width * i / count, high * row, self.width * (i + 1) / count, high * (row + 1))
            for row, count in enumerate(rows)
            for i in range(count)
        ]
        back = link is not None and (link.name in ("right of", "below")) == (link.first == 0)
        return parts[::-1] if back else parts

    def _order(self) -> list[int]:
        """Groups, each after those that its links refer to, as far as they allow it; large things first."""
        groups, links = self.request.groups, self.request.links
        waiting = sorted(range(len(groups)), key=lambda i: -things()[groups[i].thing].size)
        order: list[int] = []
        while waiting:
            free = [i for i in waiting if all(k.second in order for k in links if k.first == i)] or waiting
            order.append(free[0])
            waiting.remove(free[0])
        return order

    def _links_of(self, index: int) -> list[Link]:
        return [link for link in self.request.links if link.first == index]

    def _color(self, group: Group) -> str:
        """The named color, that of the group's first thing (mostly), a usual one (mostly), or any."""
        if group.color:
            return group.color
        same = [piece.color for piece in self.pieces if piece.thing.name == group.thing]
        if same and (self.rng.random() < 0.7 or not self.varied):
            return same[0]
        known = things()[group.thing]
        colors = known.colors if not self.varied or self.rng.random() < _USUAL else tuple(PAINTS)
        taken = {g.color for g in self.request.groups if g.thing == group.thing and g is not group}
        absent = {a.color for a in self.request.absences if a.color and a.thing in (None, group.thing)}
        for pool in (colors, tuple(PAINTS)):
            free = [c for c in pool if c not in taken | absent]
            if self.split == "train":
                free = [c for c in free if not held_out_coloring(group.thing, c)]
            if free:
                first = not self.varied and len(free) < len(PAINTS) and self.rng.random() < _USUAL
                return free[0] if first else self.rng.choice(free)
        return self.rng.choice(known.colors)

    def _size(self, group: Group, factor: float = 1.0) -> int:
        """The longer side in pixels, a multiple of two of the lattice's cells."""
        wanted = things()[group.thing].size * self.scale * factor
        wanted *= self.rng.uniform(0.9, 1.12) if self.varied else 1.0
        wanted *= SIZES[group.size] if group.size else 1.0
        smallest = _SMALLEST if self.varied or group.size == "small" else _PLAIN_SMALLEST
        return round(2 * round(min(max(wanted, smallest), _LARGEST) * self.lattice / 2) * self.cell)

    def _add(self, index: int, number: int) -> None:
        group, known = self.request.groups[index], things()[self.request.groups[index].thing]
        holding = any(link.name == "inside" and link.second == index for link in self.request.links)
        poses = known.holders if holding and known.holders else range(len(known.poses))
        color, size = self._color(group), self._size(group, 1.3 if holding else 1.0)
        pose, flip, angle = poses[0], False, 0
        if self.varied:
            tilt = not self.grounded and not holding and self.rng.random() < _TILTED
            pose, flip = self.rng.choice(poses), self.rng.random() < 0.5 and known.name != "stop sign"
            angle = self.rng.choice((-10, 10)) if tilt else 0
        piece = Piece(index, known, color, pose, size, flip, angle)
        if self.parts:
            number += sum(group.count for group in self.request.groups[:index])
            self._add_apart(piece, self._links_of(index), self.parts[number])
            self.pieces.append(piece)
            return
        links = self._links_of(index) if number == 0 else []
        depth = [link for link in links if link.name in DEPTHS]
        if depth:
            self._add_near(piece, depth[0].name, next(p for p in self.pieces if p.group == depth[0].second))
        else:
            self._add_apart(piece, links)
        self.pieces.append(piece)

    def _add_apart(self, piece: Piece, links: list[Link], part: Box | None = None) -> None:
        """Choose a position away from all pieces, in the named relations to others; or near the middle of a
        part of the picture, for which it is made smaller."""
        piece.grounded = self.grounded and not self._flies(piece)
        if part is not None:
            spare = 2 * _MARGIN * self.side + self.cell
            width, height = part[2] - part[0] - spare, part[3] - part[1] - spare
            factor = min(1.0, width / piece.sprite.width, height / piece.sprite.height)
            piece.size = round(2 * max(1, int(factor * piece.size / self.cell / 2)) * self.cell)
            piece.__post_init__()
        lefts_X, tops_Y = self._ranges(piece, links, part)
        if part is not None:
            lefts_X, tops_Y = (x[max(0, len(x) // 2 - 1) : len(x) // 2 + 2] for x in (lefts_X, tops_Y))
        free = np.flatnonzero(self._free(piece.sprite, lefts_X, tops_Y))
        for _ in range(_TRIES if len(free) else 0):
            row, column = divmod(int(free[self.rng.randrange(len(free))]), len(lefts_X))
            piece.left, piece.top = int(lefts_X[column]), int(tops_Y[row])
            if all(self._clear(piece, link) for link in links):
                piece.key = piece.box[3]
                return
        raise _NoRoom

    def _flies(self, piece: Piece) -> bool:
        return piece.thing.sky or piece.thing.poses[piece.pose].name == "flying"

    def _multiples(self, low: float, high: float) -> np.ndarray:
        """The multiples of the cell in [low, high], in pixels."""
        return np.rint(np.arange(-int(-low // self.cell), int(high // self.cell) + 1) * self.cell).astype(int)

    def _free(
        self, drawn: Sprite, lefts_X: np.ndarray, tops_Y: np.ndarray, but: Piece | None = None
    ) -> np.ndarray:
        """Whether a sprite keeps apart from all pieces, except one and what is inside it: bool [Y, X], for
        each top and left."""
        free_YX = np.ones((len(tops_Y), len(lefts_X)), dtype=bool)
        gap = _GAP * self.side
        others = [piece.box for piece in self.pieces if but is None or but not in (piece, piece.holder)]
        for x0, y0, x1, y1 in others:
            across_X = (lefts_X + drawn.width + gap > x0) & (lefts_X < x1 + gap)
            along_Y = (tops_Y + drawn.height + gap > y0) & (tops_Y < y1 + gap)
            free_YX &= ~(along_Y[:, None] & across_X)
        return free_YX

    def _ranges(
        self, piece: Piece, links: list[Link], part: Box | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lefts and tops of positions on the ground, in the air, or anywhere in a part; on the right side of
        the things that the links name."""
        drawn, margin = piece.sprite, _MARGIN * self.side
        left, top, right, bottom = part or (0, 0, self.width, self.height)
        x0, x1 = left + margin, right - margin - drawn.width
        y0, y1 = top + margin, bottom - margin - drawn.height
        if self.grounded and self.place.ground is not None:
            ground = self.place.ground * self.height
            if self._flies(piece):
                y1 = max(y0, min(y1, ground - drawn.height))
            else:
                y0 = max(y0, ground + 0.04 * self.height - drawn.height)
        for link in links:
            box = next(p for p in self.pieces if p.group == link.second).box
            if link.name == "left of":
                x1 = min(x1, box[0] - drawn.width)
            elif link.name == "right of":
                x0 = max(x0, box[2])
            elif link.name == "above":
                y1 = min(y1, box[1] - drawn.height)
            else:
                y0 = max(y0, box[3])
        return self._multiples(x0, x1), self._multiples(y0, y1)

    def _clear(self, piece: Piece, link: Link) -> bool:
        other = next(p for p in self.pieces if p.group == link.second)
        dx, dy = normalized_offset(piece.box, other.box)
        return relation(piece.box, other.box) == {link.name} and max(abs(dx), abs(dy)) > CLEAR_OFFSET

    def _fits(self, box: Box) -> bool:
        return box[0] >= 0 and box[1] >= 0 and box[2] <= self.width and box[3] <= self.height

    def _add_near(self, piece: Piece, name: str, other: Piece) -> None:
        """Find a position in front of, behind or inside another piece."""
        piece.grounded = other.grounded and name != "inside"
        for _ in range(_TRIES):
            if name == "inside":
                self._put_inside(piece, other)
            else:
                self._put_across(piece, other, 1 if name == "in front of" else -1)
            if not self.varied:
                cells = (round(at / self.cell) for at in (piece.left, piece.top))
                piece.left, piece.top = (round(number * self.cell) for number in cells)
            here = np.array([piece.left]), np.array([piece.top])
            if self._fits(piece.box) and self._free(piece.sprite, *here, but=other).all():
                return
        raise _NoRoom

    def _put_inside(self, piece: Piece, holder: Piece) -> None:
        """Scaled to the holder's box for things inside it (else the middle of the holder), and on its
        ground."""
        inside = holder.thing.poses[holder.pose].inside
        if inside is None:
            x0, y0, x1, y1 = holder.box
            box = (x0 + (x1 - x0) / 4, y0 + (y1 - y0) / 4, x1 - (x1 - x0) / 4, y1 - (y1 - y0) / 5)
        else:
            box = holder.to_pixels(inside)
        width, height = box[2] - box[0], box[3] - box[1]
        drawn = piece.sprite
        factor = min(width / drawn.width, height / drawn.height) * self.rng.uniform(0.85, 1)
        piece.size, piece.angle = max(int(factor * max(drawn.width, drawn.height)), 4), 0
        piece.__post_init__()
        if piece.size < 0.07 * self.side:
            raise _NoRoom
        spare = max(0.0, width - piece.sprite.width)
        piece.left = int(box[0] + self.rng.uniform(0.2, 0.8) * spare)
        piece.top = int(box[3] - piece.sprite.height)
        piece.key, piece.holder = holder.key + 0.5, holder

    def _put_across(self, piece: Piece, other: Piece, side: int) -> None:
        """Overlapping by a part of the narrower one's width; the nearer one (side 1: the piece) stands
        lower."""
        drawn, b = piece.sprite, other.box
        shared = self.rng.uniform(0.35, 0.6) * min(drawn.width, b[2] - b[0])
        left = b[0] - drawn.width + shared if self.rng.random() < 0.5 else b[2] - shared
        lower = self.rng.uniform(0.04, 0.1) * self.side * side
        piece.left, piece.top = round(left), round(b[3] + lower - drawn.height)
        piece.key = piece.box[3]
