"""Scenes of the world of things in a compact binary form, for preparing training data ahead.

A scene is one record of some 170 bytes: its request (so that sentences can be written anew) and its layout
(so that the picture is drawn again exactly). Drawing a layout takes a part of the time of finding it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...blocks.errors import OptionError
from .catalog import PAINTS, places, things
from .painting import Picture, compose
from .pieces import Layout, Piece
from .requests import LINKS, MAX_THINGS, SIZES, Absence, Group, Link, Request

MAX_LINKS, MAX_ABSENCES = 4, 4
NONE = 255
"""Index for what is not named."""

_GROUP = np.dtype([("thing", "u1"), ("count", "u1"), ("color", "u1"), ("size", "u1")])
_LINK = np.dtype([("first", "u1"), ("name", "u1"), ("second", "u1")])
_ABSENCE = np.dtype([("thing", "u1"), ("color", "u1")])
_PIECE = np.dtype(
    [
        ("group", "u1"), ("thing", "u1"), ("color", "u1"), ("pose", "u1"), ("flip", "?"), ("angle", "i1"),
        ("size", "<i2"), ("left", "<i2"), ("top", "<i2"), ("key", "<f4"), ("holder", "u1"),
        ("grounded", "?"),
    ]
)  # fmt: skip
SCENE = np.dtype(
    [
        ("width", "<i2"), ("height", "<i2"), ("place", "u1"), ("variant", "u1"), ("color", "u1"),
        ("asked_place", "u1"), ("groups", _GROUP, MAX_THINGS), ("links", _LINK, MAX_LINKS),
        ("absences", _ABSENCE, MAX_ABSENCES), ("pieces", _PIECE, MAX_THINGS),
    ]
)  # fmt: skip
"""One scene. Indices are those of things(), PAINTS, places(), LINKS and SIZES; rows that are not used begin
with NONE."""


class Unpacked(NamedTuple):
    """A request, and a layout that shows it in a picture of this size."""

    request: Request
    layout: Layout
    width: int
    height: int

    def draw(self) -> Picture:
        """The picture, the same one to the last pixel."""
        return compose(self.layout, self.width, self.height)


def _index(names: Sequence[str], name: str | None) -> int:
    return NONE if name is None else names.index(name)


def _name(names: Sequence[str], index: int) -> str | None:
    return None if index == NONE else names[index]


def _tables() -> tuple[tuple[str, ...], ...]:
    return tuple(things()), tuple(PAINTS), tuple(places()), LINKS, tuple(SIZES)


def pack(request: Request, picture: Picture) -> np.ndarray:
    """One record of SCENE, an array without dimensions. Raises OptionError for a request with more links or
    absences than it holds."""
    if len(request.links) > MAX_LINKS or len(request.absences) > MAX_ABSENCES:
        raise OptionError(
            f"{len(request.links)} relations and {len(request.absences)} absences; a packed scene holds "
            f"{MAX_LINKS} and {MAX_ABSENCES}"
        )
    names, colors, grounds, links, sizes = _tables()
    record = np.zeros((), dtype=SCENE)
    layout = picture.layout
    record["height"], record["width"] = picture.pixels_HW3.shape[:2]
    record["place"], record["variant"] = grounds.index(layout.place.name), layout.variant
    record["color"] = layout.place.colors.index(layout.color)
    record["asked_place"] = _index(grounds, request.place)
    for rows, first in (("groups", "thing"), ("links", "first"), ("absences", "thing"), ("pieces", "group")):
        record[rows][first] = NONE
    record["absences"]["color"] = NONE
    for i, group in enumerate(request.groups):
        record["groups"][i] = (
            names.index(group.thing),
            group.count,
            _index(colors, group.color),
            _index(sizes, group.size),
        )
    for i, link in enumerate(request.links):
        record["links"][i] = (link.first, links.index(link.name), link.second)
    for i, absence in enumerate(request.absences):
        record["absences"][i] = (_index(names, absence.thing), _index(colors, absence.color))
    numbers = {id(piece): number for number, piece in enumerate(layout.pieces)}
    for i, piece in enumerate(layout.pieces):
        holder = NONE if piece.holder is None else numbers[id(piece.holder)]
        record["pieces"][i] = (
            piece.group, names.index(piece.thing.name), colors.index(piece.color), piece.pose, piece.flip,
            piece.angle, piece.size, piece.left, piece.top, piece.key, holder, piece.grounded,
        )  # fmt: skip
    return record


def _request(record: np.ndarray) -> Request:
    names, colors, grounds, links, sizes = _tables()
    groups = tuple(
        Group(names[row["thing"]], int(row["count"]), _name(colors, row["color"]), _name(sizes, row["size"]))
        for row in record["groups"]
        if row["thing"] != NONE
    )
    chains = tuple(
        Link(int(row["first"]), links[row["name"]], int(row["second"]))
        for row in record["links"]
        if row["first"] != NONE
    )
    absences = tuple(
        Absence(_name(names, row["thing"]), _name(colors, row["color"]))
        for row in record["absences"]
        if row["thing"] != NONE or row["color"] != NONE
    )
    return Request(groups, chains, absences, _name(grounds, int(record["asked_place"])))


def _piece(row: np.void, names: Sequence[str], colors: Sequence[str]) -> Piece:
    """A piece without its holder."""
    group, pose, size, angle, left, top = (
        int(row[field]) for field in ("group", "pose", "size", "angle", "left", "top")
    )
    known, color = things()[names[int(row["thing"])]], colors[int(row["color"])]
    piece = Piece(group, known, color, pose, size, bool(row["flip"]), angle, left, top, float(row["key"]))
    piece.grounded = bool(row["grounded"])
    return piece


def unpack(record: np.ndarray) -> Unpacked:
    """The request and the layout of one record."""
    names, colors, grounds, *_ = _tables()
    place = places()[grounds[record["place"]]]
    rows = [row for row in record["pieces"] if row["group"] != NONE]
    pieces = [_piece(row, names, colors) for row in rows]
    for piece, row in zip(pieces, rows, strict=True):
        piece.holder = None if row["holder"] == NONE else pieces[row["holder"]]
    layout = Layout(tuple(pieces), place, int(record["variant"]), place.colors[record["color"]])
    return Unpacked(_request(record), layout, int(record["width"]), int(record["height"]))


def save(path: Path, scenes: Sequence[np.ndarray]) -> None:
    """Write records to a compressed `.npz`, with the names that their indices stand for."""
    names = np.array(["/".join(table) for table in _tables()])
    with path.open("wb") as stream:
        np.savez_compressed(stream, scenes=np.stack(scenes), names=names)


def load(path: Path) -> np.ndarray:
    """The records [N] of a file of `save`. Raises OptionError where the world has other names by now."""
    with np.load(path) as data:
        scenes, names = data["scenes"], data["names"]
    if list(names) != ["/".join(table) for table in _tables()] or scenes.dtype != SCENE:
        raise OptionError(f"{path} was written for a world with other things, colors or places; make it anew")
    return scenes
