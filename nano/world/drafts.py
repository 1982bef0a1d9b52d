"""Questions about a picture of the world of things before one of their wordings is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass

from .requests import Group, Link, Request, Seen, is_held_out

YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Draft:
    """Wordings of a question, its answer, and the request that both together name."""

    texts: Sequence[str]
    answer: str
    groups: tuple[Group, ...] = ()
    links: tuple[Link, ...] = ()

    @property
    def held_out(self) -> bool:
        """Whether the request names a held-out combination."""
        return bool(self.groups) and is_held_out(Request(self.groups, self.links))


def group_of(one: Seen, color: bool = True) -> Group:
    """A thing as a group of one, with or without its color."""
    return Group(one.thing, 1, one.color if color else None)


def yes(truth: bool) -> str:
    """ "yes" or "no"."""
    return YES_NO[not truth]
