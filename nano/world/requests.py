"""What a picture of the world of things must show, and whether a picture shows it.

A request has groups ("three red cats"), links between groups ("a cat left of a dog") and absences ("no
bird"). GenEval's metadata rows are requests too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from ...blocks.errors import OptionError
from .catalog import PAINTS, things
from .scene import MIRROR, RELATIONS, Box, relation
from .shapes import SHAPES

DEPTHS = ("in front of", "behind", "inside")
"""Relations of things that overlap."""
LINKS = (*RELATIONS, *DEPTHS)
OPPOSITE = {**MIRROR, "in front of": "behind", "behind": "in front of"}
"""The relation of B to A, by that of A to B."""
SIZES = {"small": 0.55, "large": 1.4}
"""Words for sizes, and the factor by which a thing is drawn smaller or larger than usual."""
MAX_THINGS = 6
HELD_OUT_SHARE = 0.1
"""The part of all combinations that is left out of training."""
MIN_VISIBLE = 0.35
"""The smallest share of a thing that is visible in a picture of things in front of, behind or inside
others."""
MIN_ALONE = 0.97
"""The same in other pictures."""


@dataclass(frozen=True)
class Group:
    """Things of one class. color, size: None where the sentence names none."""

    thing: str
    count: int = 1
    color: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Link:
    """Group `first` is `name` (one of LINKS) group `second`; both are indices."""

    first: int
    name: str
    second: int


@dataclass(frozen=True)
class Absence:
    """No thing of this class and color; None matches any."""

    thing: str | None
    color: str | None = None


@dataclass(frozen=True)
class Request:
    """What a picture shows. place: the background's name, None for any."""

    groups: tuple[Group, ...]
    links: tuple[Link, ...] = ()
    absences: tuple[Absence, ...] = ()
    place: str | None = None

    def __post_init__(self) -> None:
        """Raise OptionError for what no picture can show."""
        for part in (*self.groups, *self.absences):
            if part.thing is not None and part.thing not in things():
                raise OptionError(
                    f"{part.thing!r} is no thing of this world; accepted: {', '.join(things())}"
                )
            if part.color is not None and part.color not in PAINTS:
                raise OptionError(f"color {part.color!r} is unknown; accepted: {', '.join(PAINTS)}")
        if not self.groups or min(g.count for g in self.groups) < 1 or self.total > MAX_THINGS:
            raise OptionError(f"a picture shows 1 to {MAX_THINGS} things, not {self.total}")
        for link in self.links:
            ends = {link.first, link.second}
            if link.name not in LINKS or len(ends) != 2 or not ends <= set(range(len(self.groups))):
                raise OptionError(f"{link} is no relation of two groups; accepted: {', '.join(LINKS)}")

    @property
    def total(self) -> int:
        """The number of things."""
        return sum(group.count for group in self.groups)


@dataclass(frozen=True)
class Seen:
    """One thing of a picture's truth.

    box: of all of it, in pixels, hidden parts included. depth: 0 is farthest. visible: the share of its
    pixels that nothing hides.
    """

    thing: str
    color: str
    pose: int
    box: Box
    depth: int
    visible: float


def overlap(a: Box, b: Box) -> float:
    """Area that two boxes share, as a part of the smaller one."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0) * max(height, 0) / smaller


def holds(a: Seen, name: str, b: Seen) -> bool:
    """Whether A is `name` (one of LINKS) B.

    Left, right, above and below are GenEval's rule for boxes. In front of, behind: the boxes overlap by a
    tenth of the smaller one and more, and the nearer one hides a part of the other. Inside: A's lower edge
    and both sides are within B's box.
    """
    if name in RELATIONS:
        return name in relation(a.box, b.box)
    within = b.box[0] <= a.box[0] and a.box[2] <= b.box[2] and b.box[1] < a.box[3] <= b.box[3]
    if name == "inside":
        return within and overlap(a.box, b.box) > 0.2 and a.box[3] - a.box[1] < 1.2 * (b.box[3] - b.box[1])
    if name == "behind":
        a, b = b, a
    hidden = a.depth > b.depth and b.visible < 0.97 and overlap(a.box, b.box) > 0.1
    return hidden and not (name == "in front of" and within)


def satisfies(request: Request, seen: Sequence[Seen]) -> bool:
    """Whether a picture with these things shows what the request says, as many and no other ones."""
    wanted: dict[str, list[Group]] = {}
    for group in request.groups:
        wanted.setdefault(group.thing, []).append(group)
    least = MIN_VISIBLE if any(link.name in DEPTHS for link in request.links) else MIN_ALONE
    if {one.thing for one in seen} != set(wanted) or any(one.visible < least for one in seen):
        return False
    members = {id(group): members_of(group, seen) for group in request.groups}
    for name, groups in wanted.items():
        if sum(one.thing == name for one in seen) != sum(group.count for group in groups):
            return False
        if any(len(members[id(group)]) < group.count for group in groups):
            return False
    for absence in request.absences:
        if any(absence.thing in (None, s.thing) and absence.color in (None, s.color) for s in seen):
            return False
    return all(
        any(
            one is not other and holds(one, link.name, other)
            for one in members[id(request.groups[link.first])]
            for other in members[id(request.groups[link.second])]
        )
        for link in request.links
    )


def members_of(group: Group, seen: Sequence[Seen]) -> list[Seen]:
    """The things of a group's class and color."""
    return [one for one in seen if one.thing == group.thing and group.color in (None, one.color)]


def from_row(row: Mapping[str, Any]) -> Request:
    """The request of a GenEval metadata row, whose exclude clauses only bound the counts or name absences."""
    groups = tuple(Group(clause["class"], clause["count"], clause.get("color")) for clause in row["include"])
    links = tuple(
        Link(i, clause["position"][0], clause["position"][1])
        for i, clause in enumerate(row["include"])
        if "position" in clause
    )
    named = {group.thing for group in groups}
    absences = tuple(
        Absence(clause["class"], clause.get("color"))
        for clause in row.get("exclude", ())
        if clause["count"] == 1 and (clause["class"] not in named or clause.get("color"))
    )
    return Request(groups, links, absences)


def to_row(request: Request, tag: str, prompt: str) -> dict[str, Any]:
    """A GenEval metadata row. Sizes, places and depths have no clause there; a link needs the group it
    refers to before its own, so groups are put in that order. Raises OptionError for links in a circle."""
    order: list[int] = []
    waiting = list(range(len(request.groups)))
    while waiting:
        ready = [i for i in waiting if all(link.second in order for link in request.links if link.first == i)]
        if not ready:
            raise OptionError("the relations form a circle; accepted: each refers to another group in turn")
        order.append(ready[0])
        waiting.remove(ready[0])
    include = []
    for i in order:
        group = request.groups[i]
        clause: dict[str, Any] = {"class": group.thing, "count": group.count}
        clause |= {"color": group.color} if group.color else {}
        for link in request.links:
            if link.first == i and link.name in RELATIONS:
                clause["position"] = [link.name, order.index(link.second)]
        include.append(clause)
    exclude: list[dict[str, Any]] = [
        {"class": absence.thing, "count": 1, **({"color": absence.color} if absence.color else {})}
        for absence in request.absences
        if absence.thing
    ]
    if tag == "counting":
        exclude = [{"class": group.thing, "count": group.count + 1} for group in request.groups] + exclude
    return {"tag": tag, "include": include, **({"exclude": exclude} if exclude else {}), "prompt": prompt}


@lru_cache(maxsize=1 << 16)
def hash_share(*words: str) -> float:
    """A number in [0, 1) that depends on the words only, so that a new thing changes nothing for others."""
    return int.from_bytes(blake2b("/".join(words).encode(), digest_size=4).digest()) / 2**32


def held_out_coloring(name: str, color: str) -> bool:
    """Whether a thing in this color is left out of training: one in ten, and never a thing's usual color."""
    usual = things()[name].colors
    if len(usual) == len(PAINTS):
        return hash_share(name, color) < HELD_OUT_SHARE
    return color not in usual and hash_share(name, color) < HELD_OUT_SHARE * len(PAINTS) / (
        len(PAINTS) - len(usual)
    )


def held_out_link(first: str, name: str, second: str) -> bool:
    """Whether (thing, relation, thing) is left out of training: one in ten, with its mirror image."""
    mirror = OPPOSITE.get(name)
    if mirror is not None and first > second:
        first, name, second = second, mirror, first
    return hash_share(first, name, second) < HELD_OUT_SHARE


def held_out_role(name: str, color: str, link: str) -> bool:
    """Whether a thing of this color in this relation, to whatever it is, is left out of training: one in
    ten."""
    return hash_share(name, color, link) < HELD_OUT_SHARE


def is_held_out(request: Request) -> bool:
    """Whether a request names a combination that is left out of training: (thing, color), (thing, relation,
    thing) or (thing, color, relation)."""
    groups = request.groups
    if any(group.color and held_out_coloring(group.thing, group.color) for group in groups):
        return True
    for link in request.links:
        first, second, back = groups[link.first], groups[link.second], OPPOSITE.get(link.name)
        if held_out_link(first.thing, link.name, second.thing):
            return True
        if first.color and held_out_role(first.thing, first.color, link.name):
            return True
        if second.color and back and held_out_role(second.thing, second.color, back):
            return True
    return False


GENEVAL_THINGS = tuple(name for name in things() if name not in SHAPES)
"""GenEval's 80 classes."""
