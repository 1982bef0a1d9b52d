"""Why a clause failed, as a sentence of ours or in the published scorer's own words."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .schema import COLORS, RELATIONS, Clause


@dataclass(frozen=True)
class Failure:
    """A clause that does not hold.

    kind: "missing" (too few objects), "color", "lost" (the target of a relation failed its own clause),
    "position" or "excess" (too many, of an exclude clause). found: the number of objects. colors: of the
    objects. target: the class of a relation's target. holding: the relations that hold instead.
    """

    kind: str
    clause: Clause
    found: int = 0
    colors: Counter[str] = field(default_factory=Counter)
    target: str = ""
    holding: frozenset[str] = frozenset()


def explain(failures: Sequence[Failure], official: bool = False) -> str:
    """The failures, a line each."""
    return "\n".join(map(_official if official else _plain, failures))


def _plain(failure: Failure) -> str:
    clause, cls = failure.clause, failure.clause.cls
    if failure.kind == "missing":
        return f"{cls}: at least {clause.count} wanted, {failure.found} detected"
    if failure.kind == "excess":
        named = f"{clause.color} {cls}" if clause.color else cls
        return f"{named}: fewer than {clause.count} allowed, {failure.found} detected"
    if failure.kind == "color":
        listed = ", ".join(f"{number} {color}" for color, number in sorted(failure.colors.items()))
        return f"{cls}: at least {clause.count} {clause.color} wanted, seen: {listed}"
    wanted = f"{cls}: wanted {clause.relation} {failure.target}"
    if failure.kind == "lost":
        return f"{wanted}, which failed its own clause"
    return f"{wanted}, is {_joined(failure) or 'in no clear relation to it'}"


def _official(failure: Failure) -> str:
    """The published scorer's words. It names two relations in the order of a Python set, which differs from
    run to run; here they come in the order of RELATIONS."""
    clause, cls = failure.clause, failure.clause.cls
    if failure.kind == "missing":
        return f"expected {cls}>={clause.count}, found {failure.found}"
    if failure.kind == "excess":
        named = f"{clause.color} {cls}" if clause.color else cls
        return f"expected {named}<{clause.count}, found {failure.found}"
    if failure.kind == "color":
        color, colors = clause.color or "", failure.colors
        listed = ", ".join(f"{colors[name]} {name}" for name in COLORS if colors[name])
        return f"expected {color} {cls}>={clause.count}, found {colors[color]} {color}; and {listed}"
    if failure.kind == "lost":
        return f"no target for {cls} to be {clause.relation}"
    return f"expected {cls} {clause.relation} target, found {_joined(failure)} target"


def _joined(failure: Failure) -> str:
    return " and ".join(name for name in RELATIONS if name in failure.holding)
