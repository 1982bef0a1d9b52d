"""Phrases to be located in a picture of the world of things, captions, and captions with boxes.

Boxes are in DeepSeek-VL2's form; see `vl2/grounding.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ...vl2.grounding import Box, format_boxes
from .catalog import PAINTS
from .names import PAIRED, article, plural
from .painting import Picture
from .questions import NO_MATCH
from .requests import LINKS, Group, Link, Request, is_held_out
from .scene import Box as Corners
from .view import PLACES, View, named
from .wording import NUMBER_WORDS, enumeration

KINDS = ("named", "related", "absent", "sign")


@dataclass(frozen=True)
class Phrase:
    """A phrase and the boxes in pixels of all that it refers to, from left to right. held_out: whether it
    names a held-out combination."""

    kind: str
    text: str
    targets: tuple[Corners, ...]
    held_out: bool

    def answer(self, view: View) -> str:
        """The phrase with the boxes of its targets, or that it is not there."""
        return boxed(self.text, self.targets, view) if self.targets else NO_MATCH


def boxed(label: str, boxes: Sequence[Corners], view: View) -> str:
    """A label with boxes in the model's form, rounded to whole pixels inside the picture."""
    limits = (view.width, view.height)
    pixels = []
    for box in boxes:
        x0, y0, x1, y1 = (min(max(round(v), 0), limits[i % 2]) for i, v in enumerate(box))
        pixels.append(Box(label, x0, y0, x1, y1))
    return format_boxes(pixels, limits)


def _left_to_right(boxes: Sequence[Corners]) -> tuple[Corners, ...]:
    return tuple(sorted(boxes, key=lambda box: (box[0] + box[2], box[1] + box[3])))


def _noun(thing: str | None, color: str | None, many: bool, rng: Random) -> str:
    """ "the red cat", "red cats", "the red thing"."""
    noun = thing or "thing"
    noun = plural(noun) if many and thing else f"{noun}s" if many else noun
    noun = f"{color} {noun}" if color else noun
    return noun if rng.random() < 0.25 else f"the {noun}"


def _held_out(*groups: Group, links: tuple[Link, ...] = ()) -> bool:
    return is_held_out(Request(groups, links))


def _by_name(view: View, rng: Random) -> Phrase:
    one = rng.choice(view.seen)
    thing, color = rng.choice(((one.thing, None), (one.thing, one.color), (None, one.color)))
    found = view.matching(thing, color)
    held_out = any(_held_out(Group(s.thing, 1, s.color)) for s in found) if color else False
    text = _noun(thing, color, len(found) > 1, rng)
    return Phrase("named", text, _left_to_right([s.box for s in found]), held_out)


def _absent(view: View, rng: Random) -> Phrase | None:
    """A thing that is not there, or that is there in another color only."""
    one = rng.choice(view.seen)
    color = rng.choice((rng.choice(view.seen).color, rng.choice(list(PAINTS))))
    thing, color = rng.choice(((view.absent(rng), None), (view.absent(rng), color), (one.thing, color)))
    if view.matching(thing, color):
        return None
    return Phrase("absent", _noun(thing, color, False, rng), (), _held_out(Group(thing, 1, color)))


def _related(view: View, rng: Random) -> Phrase | None:
    """The things of a class in a clear relation to another thing: "the cat left of the blue dog"."""
    if len(view.seen) < 2 or not view.unique:
        return None
    anchor, name = rng.choice(view.unique), rng.choice(LINKS)
    others = [one for one in view.seen if one.thing != anchor.thing]
    if not others:
        return None
    thing = rng.choice(others).thing
    same = view.matching(thing)
    fits = [one for one in same if view.relation(one, anchor) == name]
    if any(one not in fits and not view.denies(one, name, anchor) for one in same):
        return None
    if not fits and rng.random() < 0.8:
        return None
    color = fits[0].color if fits and rng.random() < 0.4 else None
    if color and any(one.color != color for one in fits):
        return None
    anchored = rng.random() < 0.5
    group = Group(anchor.thing, 1, anchor.color if anchored else None)
    held_out = _held_out(Group(thing, 1, color), group, links=(Link(0, name, 1),))
    noun = _noun(thing, color, len(fits) > 1, rng)
    to = f"the {anchor.color} {anchor.thing}" if anchored else named(anchor, rng)
    text = f"{noun} {view.link_words(name, rng)} {to}"
    return Phrase("related", text, _left_to_right([one.box for one in fits]), held_out)


def _sign(view: View, rng: Random) -> Phrase:
    sign = view.picture.sign
    text = rng.choice(("the sign", "a sign", "the board with words"))
    return Phrase("sign", text, (sign.box,) if sign else (), False)


def point(view: View, rng: Random, kind: str | None = None, split: str = "train") -> Phrase:
    """A random phrase of one of KINDS (of any by default; "named" where the kind is impossible).

    split: "train": no phrase that names a held-out combination; "any".
    """
    samplers = {"named": _by_name, "related": _related, "absent": _absent, "sign": _sign}
    for _ in range(24):
        found = samplers[kind or rng.choices(KINDS, (4, 4, 3, 1))[0]](view, rng)
        if found is not None and (split == "any" or not found.held_out):
            return found
    one = rng.choice(view.seen)
    boxes = _left_to_right([s.box for s in view.matching(one.thing)])
    return Phrase("named", _noun(one.thing, None, len(boxes) > 1, rng), boxes, False)


def _groups(view: View) -> list[tuple[str, list[Corners]]]:
    """Things of the same class and color together, in reading order: phrases and boxes."""
    found: dict[tuple[str, str], list[Corners]] = {}
    for one in sorted(view.seen, key=lambda s: (s.box[0] + s.box[2], s.box[1] + s.box[3])):
        found.setdefault((one.color, one.thing), []).append(one.box)
    return [(_phrase(color, thing, len(boxes)), boxes) for (color, thing), boxes in found.items()]


def _phrase(color: str, thing: str, count: int) -> str:
    """ "a red cat", "two red cats", "a pair of red skis"."""
    if count == 1:
        return f"a pair of {color} {thing}" if thing in PAIRED else article(f"{color} {thing}")
    return f"{NUMBER_WORDS[count]} {color} {plural(thing)}"


def _written(picture: Picture) -> list[str]:
    return [f'a sign that says "{picture.sign.words}"'] if picture.sign else []


def caption(view: View) -> str:
    """All things from left to right, the sign and the place: "a red cat and two blue dogs in a room"."""
    phrases = [phrase for phrase, _ in _groups(view)] + _written(view.picture)
    place = PLACES.get(view.picture.place)
    return enumeration(phrases) + (f" {place}" if place else "")


def boxed_caption(view: View) -> str:
    """The same with boxes, without the place."""
    phrases = [boxed(phrase, boxes, view) for phrase, boxes in _groups(view)]
    if sign := view.picture.sign:
        phrases.append(boxed(_written(view.picture)[0], [sign.box], view))
    return enumeration(phrases)
