"""What a picture of the world of things is drawn from: pieces, which are things at their places, and a
background; and how different such pictures are."""

from dataclasses import dataclass, field

from .catalog import Place, Thing
from .scene import Box
from .sprites import Sprite, sprite


@dataclass(frozen=True)
class Variety:
    """How different the pictures of one request are.

    lattice: cells along the shorter side; positions are multiples of one, sizes of two. varied: with False a
    thing has its first pose, mostly its first color, and hardly more than one size for each number of things;
    there are few backgrounds; and things without relations, and two with one, stand about the middles of
    parts of the picture, which are rows in the order of the request.
    """

    lattice: int = 64
    varied: bool = True


ANY = Variety()
PAINTED = Variety(24, varied=False)
"""Of the pictures that painting is learned from. Their cells are the codes of a picture of 192 pixels, so
that a thing has the same codes wherever it stands."""


@dataclass
class Piece:
    """A thing in a layout. left, top: of its sprite, in pixels. key: the nearer, the larger. holder: the
    piece that it is inside of, if any. grounded: whether it has a shadow."""

    group: int
    thing: Thing
    color: str
    pose: int
    size: int
    flip: bool
    angle: int
    left: int = 0
    top: int = 0
    key: float = 0.0
    holder: "Piece | None" = None
    grounded: bool = False
    sprite: Sprite = field(init=False)

    def __post_init__(self) -> None:
        """Look up its sprite; again after its size or angle has changed."""
        self.sprite = sprite(self.thing.name, self.pose, self.color, self.size, self.flip, self.angle)

    @property
    def box(self) -> Box:
        """In pixels."""
        return self.left, self.top, self.left + self.sprite.width, self.top + self.sprite.height

    def to_pixels(self, box: Box) -> Box:
        """A box in units of the unrotated drawing, in pixels of the picture."""
        drawn = self.sprite
        x0, x1 = box[0] * drawn.scale - drawn.left, box[2] * drawn.scale - drawn.left
        if self.flip:
            x0, x1 = drawn.width - x1, drawn.width - x0
        y0, y1 = (y * drawn.scale - drawn.top + self.top for y in (box[1], box[3]))
        return x0 + self.left, y0, x1 + self.left, y1

    def front(self) -> int | None:
        """The picture's row from which on it hides what is inside; None if it hides nothing."""
        front = self.thing.poses[self.pose].front
        return None if front is None else round(self.to_pixels((0, front, 0, front))[1])


@dataclass(frozen=True)
class Layout:
    """Pieces from far to near, and the background."""

    pieces: tuple[Piece, ...]
    place: Place
    variant: int
    color: tuple[int, int, int]
