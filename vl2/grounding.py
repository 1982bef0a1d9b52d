"""Grounding: parses, formats and draws the boxes in DeepSeek-VL2's texts.

Boxes are written `<|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2], ...]<|/det|>`, with coordinates from 0, the
image's left or top edge, to 999, its right or bottom edge.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..blocks.errors import PromptError
from ..blocks.image_io import open_image
from .prompts import DET, DET_END, GROUNDING, REF, REF_END

FULL = 999
"""The coordinate of the right and the bottom edge."""

_MARK = re.compile(r"(<\|/?(?:ref|det)\|>|<\|grounding\|>)")
_GROUP = re.compile(r"\[([^\[\]]*)\]")
_NUMBERS = re.compile(r"\s*([0-9]{1,4})\s*,\s*([0-9]{1,4})\s*,\s*([0-9]{1,4})\s*,\s*([0-9]{1,4})\s*")
_LIST = re.compile(r"\s*\[\s*(?:#(?:\s*,\s*#)*)?\s*\]\s*")

# Far apart in hue and lightness, and readable on both white and black (after Okabe and Ito 2008).
COLOURS = (
    (213, 94, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (148, 75, 30),
    (120, 94, 240),
    (196, 20, 60),
    (90, 110, 20),
)


@dataclass(frozen=True)
class Box:
    """A labelled rectangle in pixels of its image.

    `normalized`: its coordinates in 0..999, as in the model's text; where None, `format_boxes` computes them.
    """

    label: str
    x1: int
    y1: int
    x2: int
    y2: int
    normalized: tuple[int, int, int, int] | None = None

    @classmethod
    def from_normalized(
        cls, label: str, normalized: tuple[int, int, int, int], size: tuple[int, int]
    ) -> "Box":
        """The box of coordinates in 0..999 on an image of `size` (width, height); pixels are rounded down."""
        x1, y1, x2, y2 = (int(v / FULL * size[axis % 2]) for axis, v in enumerate(normalized))
        return cls(label, x1, y1, x2, y2, normalized)

    @property
    def pixels(self) -> tuple[int, int, int, int]:
        """`(x1, y1, x2, y2)`: left, top, right, bottom."""
        return self.x1, self.y1, self.x2, self.y2


@dataclass(frozen=True)
class Problem:
    """A malformed piece of a text: the piece, the index where it begins, and what is wrong with it."""

    text: str
    position: int
    reason: str


@dataclass(frozen=True)
class Grounding:
    """A parsed text: `text` without the special tokens (labels stay in it), and boxes in reading order."""

    text: str
    boxes: tuple[Box, ...]
    problems: tuple[Problem, ...]


def parse_grounding(text: str, size: tuple[int, int]) -> Grounding:
    """Parse a model's answer about an image of `size` (width, height). Never raises for a text.

    Malformed pieces are reported in `problems` and otherwise ignored.
    """
    pieces: list[tuple[str, int]] = []
    start = 0
    for piece in _MARK.split(text):
        if piece:
            pieces.append((piece, start))
        start += len(piece)
    plain: list[str] = []
    boxes: list[Box] = []
    problems: list[Problem] = []
    label: tuple[str, int] | None = None  # the last label, until its boxes follow
    index = 0

    def report_label() -> None:
        if label is not None:
            problems.append(Problem(label[0], label[1], "a label without boxes"))

    while index < len(pieces):
        piece, position = pieces[index]
        if piece in (REF, DET):
            content, count = _enclosed(pieces, index)
            if content is None:
                problems.append(Problem(piece, position, "a mark that is not closed"))
            elif piece == REF:
                report_label()
                label = content
                plain.append(content[0])
            else:
                if label is None:
                    problems.append(Problem(content[0], content[1], "boxes without a label"))
                parsed, malformed = _parse_boxes(*content, label[0] if label else "", size)
                boxes += parsed
                problems += malformed
                label = None
            index += count
            continue
        if piece in (REF_END, DET_END):
            problems.append(Problem(piece, position, "an end without its beginning"))
        elif piece != GROUNDING:
            plain.append(piece)
            if piece.strip():
                report_label()
                label = None
        index += 1
    report_label()
    return Grounding("".join(plain), tuple(boxes), tuple(problems))


def _enclosed(pieces: list[tuple[str, int]], index: int) -> tuple[tuple[str, int] | None, int]:
    """The text between the tag at `index` and its end tag with its position (None without an end tag), and
    the number of pieces consumed."""
    mark, position = pieces[index]
    end = REF_END if mark == REF else DET_END
    after = pieces[index + 1 : index + 3]
    if after and after[0][0] == end:
        return ("", position + len(mark)), 2
    if len(after) == 2 and after[1][0] == end and not _MARK.fullmatch(after[0][0]):
        return after[0], 3
    return None, 1


def _parse_boxes(
    content: str, position: int, label: str, size: tuple[int, int]
) -> tuple[list[Box], list[Problem]]:
    """The boxes of a `<|det|>` text, and problems; a malformed box does not invalidate the others."""
    boxes, problems = [], []
    groups = list(_GROUP.finditer(content))
    if len(groups) == 1 and content.strip() == groups[0][0] and not groups[0][1].strip():
        return [], []  # an empty list: no object was found
    for group in groups:
        numbers = _NUMBERS.fullmatch(group[1])
        reason = None
        if numbers is None:
            reason = "not four whole numbers"
        else:
            x1, y1, x2, y2 = (int(number) for number in numbers.groups())
            if max(x1, y1, x2, y2) > FULL:
                reason = f"a coordinate above {FULL}"
            elif x2 < x1 or y2 < y1:
                reason = "right or bottom before left or top"
            else:
                boxes.append(Box.from_normalized(label, (x1, y1, x2, y2), size))
        if reason:
            problems.append(Problem(group[0], position + group.start(), reason))
    if not _LIST.fullmatch(_GROUP.sub("#", content.replace("#", "?"))):
        problems.append(Problem(content, position, "not a list of boxes"))
    return boxes, problems


def format_boxes(boxes: Sequence[Box], size: tuple[int, int] | None = None) -> str:
    """Boxes in the model's syntax, consecutive ones with the same label in one list: the inverse of
    `parse_grounding`.

    `size` is the image's (width, height), required for boxes without `normalized`. Raises `PromptError` if it
    is missing, for a box outside the image, and for a label that contains one of the tags.
    """
    groups: list[tuple[str, list[str]]] = []
    for box in boxes:
        if _MARK.search(box.label):
            raise PromptError(f"the label {box.label!r} holds a mark of the grounding syntax")
        if not groups or groups[-1][0] != box.label:
            groups.append((box.label, []))
        groups[-1][1].append(str(list(box.normalized or _normalize(box, size))))
    return "".join(f"{REF}{label}{REF_END}{DET}[{', '.join(places)}]{DET_END}" for label, places in groups)


def _normalize(box: Box, size: tuple[int, int] | None) -> tuple[int, int, int, int]:
    if size is None:
        raise PromptError(f"{box} has no normalized coordinates; give the size of its picture")
    width, height = size
    if not (0 <= box.x1 <= box.x2 <= width and 0 <= box.y1 <= box.y2 <= height):
        raise PromptError(f"{box} is not inside its picture of {width} x {height} pixels")
    x1, x2 = (round(x / width * FULL) for x in (box.x1, box.x2))
    y1, y2 = (round(y / height * FULL) for y in (box.y1, box.y2))
    return x1, y1, x2, y2


def draw_boxes(
    picture: Any,
    boxes: Box | Sequence[Box],
    labels: bool = True,
    colour: tuple[int, int, int] | None = None,
    exif: str = "apply",
) -> Image.Image:
    """An RGB copy of the picture with each box outlined and labelled, in a colour per label or in `colour`.

    The picture has any form of `ask`, and is turned upright as its EXIF says, as `locate` does unless told.
    The font is Pillow's built-in one; its size is proportional to the picture's.
    """
    drawn = open_image(picture, exif=exif)  # always a copy
    boxes = [boxes] if isinstance(boxes, Box) else boxes
    canvas = ImageDraw.Draw(drawn)
    line = max(2, round(min(drawn.size) / 200))
    font = ImageFont.load_default(max(12, round(min(drawn.size) / 30)))
    names = dict.fromkeys(box.label for box in boxes)
    colours = {name: colour or COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    for box in boxes:
        canvas.rectangle(box.pixels, outline=colours[box.label], width=line)
    for box in boxes if labels else ():
        if box.label.strip():
            _write_label(canvas, drawn.size, box, colours[box.label], font)
    return drawn


def _write_label(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: Box,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Draw the label on a background of the box's colour, above the box or inside it, within the picture."""
    text = " ".join(box.label.split())
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    margin = 3
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x = max(0, min(box.x1, size[0] - int(width)))
    y = box.y1 - height if box.y1 >= height else box.y1
    y = max(0, min(y, size[1] - int(height)))
    canvas.rectangle((x, y, x + width, y + height), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    canvas.text((x + margin - left, y + margin - top), text, fill=ink, font=font)
