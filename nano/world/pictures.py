"""Random pictures to ask about: of any shape, some with a sign, and pairs that have something in common."""

from random import Random

from ...blocks.errors import OptionError
from .catalog import PAINTS
from .painting import Picture, paint
from .requests import MAX_THINGS, Group, Request, held_out_coloring
from .sampling import KINDS, MORE_KINDS, sample_example
from .signs import hang_sign, sample_words
from .view import View

_ASPECTS = (1.0, 1.0, 5 / 4, 4 / 3, 3 / 2, 16 / 9, 2.0, 2.5)
_SHORTER = (160, 192, 224, 256)  # pixels of the shorter side
_SIGNS = 0.35  # share of pictures with a sign
_ALIKE = 0.75  # share of pairs with a class in common


def sample_size(rng: Random) -> tuple[int, int]:
    """Width and height: 160 to 256 pixels at the shorter side, up to 2.5 times as many at the other."""
    shorter = rng.choice(_SHORTER)
    longer = round(shorter * rng.choice(_ASPECTS))
    return (longer, shorter) if rng.random() < 0.5 else (shorter, longer)


def _signed(picture: Picture, rng: Random, split: str) -> Picture:
    if rng.random() >= _SIGNS:
        return picture
    return hang_sign(picture, sample_words(rng, "train" if split == "train" else "any"), rng) or picture


def sample_view(rng: Random, split: str = "train", size: tuple[int, int] | None = None) -> View:
    """A random picture of any kind, of a random size by default. split: "train": nothing held out is in it,
    neither combinations nor words on a sign; "any"."""
    width, height = size or sample_size(rng)
    picture = sample_example(rng.choice((*KINDS, *MORE_KINDS)), rng, split, width, height).picture
    return View(_signed(picture, rng, split))


def sample_pair(rng: Random, split: str = "train", size: tuple[int, int] | None = None) -> tuple[View, View]:
    """Two random pictures; the second mostly shows some of the first one's things, half of them in another
    color."""
    first = sample_view(rng, split, size)
    if rng.random() >= _ALIKE:
        return first, sample_view(rng, split, size)
    while True:
        names = sorted({one.thing for one in first.seen})
        groups = []
        for name in rng.sample(names, rng.randint(1, min(2, len(names)))):
            color = rng.choice(first.matching(name)).color if rng.random() < 0.5 else rng.choice(list(PAINTS))
            if split != "train" or not held_out_coloring(name, color):
                groups.append(Group(name, rng.choice((1, 1, 1, 2, 3)), color))
        if rng.random() < 0.6:
            groups.append(Group(first.absent(rng)))
        if not groups or sum(group.count for group in groups) > MAX_THINGS:
            continue
        width, height = size or sample_size(rng)
        try:
            second = paint(Request(tuple(groups)), rng, width, height, split)
        except OptionError:  # no room for them
            continue
        other = View(_signed(second, rng, split))
        return (first, other) if rng.random() < 0.5 else (other, first)
