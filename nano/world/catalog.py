"""The things and the places of the world of things, read from their vector pictures.

A thing is one file of `things/`, a place one file of `places/`: adding a file adds the thing. The root
element's attributes say what a scene and a sentence need to know:

- `data-size`: the longer side in a scene, in units of the picture's shorter side;
- `data-kind`: what sort of thing it is, and `data-fits`: the kinds that are usual in a place, separated by
  spaces;
- `data-plural`, `data-also`: an irregular plural, and other names, separated by `|`;
- `data-colors`: usual colors of a thing (names) or of a place (hexadecimal); without one, any color is usual;
- `data-sky`: the thing is at home in the air;
- `data-ground`: where a place's ground begins, in percent of the height; without one, things float;
- `data-words`: phrases for a place, separated by `|`.

Each `<g id>` is one pose (of a thing) or one variant (of a place), on a canvas of 100 x 100 units. The main
color is `currentColor`. `data-inside` is the box in a pose that holds what is inside the thing, and
`data-front` the height from which on the thing hides it.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ...blocks.errors import OptionError
from .scene import Box

PAINTS: dict[str, tuple[int, int, int]] = {
    "red": (226, 50, 48),
    "orange": (250, 138, 28),
    "yellow": (252, 214, 60),
    "green": (58, 166, 82),
    "blue": (50, 108, 224),
    "purple": (144, 72, 188),
    "pink": (250, 146, 192),
    "brown": (142, 92, 54),
    "black": (62, 62, 70),
    "white": (250, 250, 250),
    "gray": (152, 156, 162),
}
"""RGB of the eleven colors of things: GenEval's ten, then gray."""

_FOLDER = Path(__file__).parent
_ATTRIBUTE = re.compile(r'([\w:-]+)="([^"]*)"')
_POSE = re.compile(r'<g id="([\w-]+)"([^>]*)>\n(.*?)\n</g>\n(?=<g id=|</svg>)', re.DOTALL)


@dataclass(frozen=True)
class Pose:
    """One drawing: SVG elements, and the box of what is inside (None: the thing holds nothing).

    front: from this y on the drawing hides what is inside; None if it hides nothing.
    """

    name: str
    elements: str
    inside: Box | None = None
    front: float | None = None


@dataclass(frozen=True)
class Thing:
    """A class of objects: how it is called, how large it is drawn, and its poses. See the module's
    docstring."""

    name: str
    kind: str
    plural: str
    also: tuple[str, ...]
    size: float
    colors: tuple[str, ...]
    sky: bool
    opening: str
    poses: tuple[Pose, ...]

    @property
    def holders(self) -> tuple[int, ...]:
        """Indices of the poses that something can be inside."""
        return tuple(i for i, pose in enumerate(self.poses) if pose.inside)


@dataclass(frozen=True)
class Place:
    """A background: kinds of things that are usual in it, phrases, RGB colors,
    where its ground begins (0 to 1; None without ground), and its variants."""

    name: str
    fits: tuple[str, ...]
    words: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ground: float | None
    opening: str
    variants: tuple[Pose, ...]


def plural_of(name: str) -> str:
    """The regular plural: "benches", "wine glasses", "buses", "stars"."""
    return name + ("es" if re.search(r"(s|x|ch|sh)$", name) else "s")


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(text.split("|")) if text else ()


def _read(path: Path) -> tuple[dict[str, str], str, tuple[Pose, ...]]:
    """The root's attributes, everything before the first pose, and the poses."""
    text = path.read_text(encoding="utf-8")
    start = text.index('<g id="')
    poses = []
    for name, attributes, elements in _POSE.findall(text):
        found = dict(_ATTRIBUTE.findall(attributes))
        x0, y0, x1, y1 = map(float, found.get("data-inside", "0 0 0 0").split())
        front = found.get("data-front")
        box = (x0, y0, x1, y1) if "data-inside" in found else None
        poses.append(Pose(name, elements, box, float(front) if front else None))
    return dict(_ATTRIBUTE.findall(text[: text.index(">")])), text[:start], tuple(poses)


def read_thing(path: Path) -> Thing:
    """The thing that a file draws; it has the file's name."""
    name = path.stem.replace("_", " ")
    root, opening, poses = _read(path)
    return Thing(
        name,
        root["data-kind"],
        root.get("data-plural") or plural_of(name),
        _split(root.get("data-also")),
        float(root["data-size"]),
        tuple(root.get("data-colors", " ".join(PAINTS)).split()),
        "data-sky" in root,
        opening,
        poses,
    )


@lru_cache(maxsize=1)
def things() -> dict[str, Thing]:
    """All things by their GenEval name, in alphabetical order."""
    return {one.name: one for one in map(read_thing, sorted((_FOLDER / "things").glob("*.svg")))}


@lru_cache(maxsize=1)
def places() -> dict[str, Place]:
    """All places by their name."""
    found = {}
    for path in sorted((_FOLDER / "places").glob("*.svg")):
        root, opening, variants = _read(path)
        colors = [bytes.fromhex(color.lstrip("#")) for color in root["data-colors"].split()]
        ground = root.get("data-ground")
        found[path.stem] = Place(
            path.stem,
            tuple(root.get("data-fits", "").split()),
            _split(root.get("data-words")),
            tuple((r, g, b) for r, g, b in colors),
            float(ground) / 100 if ground else None,
            opening,
            variants,
        )
    return found


def thing(name: str) -> Thing:
    """The thing of this name. Raises OptionError for others."""
    if name not in things():
        raise OptionError(f"{name!r} is no thing of this world; accepted: {', '.join(things())}")
    return things()[name]
