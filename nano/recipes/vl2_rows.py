"""Rows of tokens that `vl2-nano` is trained on: several conversations about the same pictures, exactly as
the pipeline makes them.

Conversations that begin after the pictures share these: a token attends to the pictures, and to earlier ones
of its own conversation, whose positions follow the pictures' too. So each is computed as if it were the only
one. A question before the pictures has a row of its own, as the pictures attend to it.

L tokens of a row, M learned ones, T of a picture.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from ...blocks.chat.messages import Turn
from ...learn.packed import Arrays, Turns
from ...tokenizers.text import TextTokenizer
from ...vl2.config import read_config
from ...vl2.processor import VL2Processor
from ...vl2.prompts import DET, DET_END, IMAGE, encode_turns
from ...vl2.tiles import Size
from .vl2_spec import VIEWS

FORMS: dict[int, dict[str, int]] = {
    1: {"<image>\n{}": 84, "<image> {}": 8, "<image>{}": 8},
    2: {
        "<image>\n<image>\n{}": 75,
        "This is image_1: <image>\nThis is image_2: <image>\n{}": 13,
        "<image><image>{}": 6,
        "{}\n<image>\n<image>": 6,
    },
}
"""Where the pictures of a conversation stand in the first question, by their number, and how often."""
FIRST = {"{}\n<image>": 70, "{} <image>": 30}
"""The same of a question before a picture."""
NEWLINE, SEPARATOR, FIRST_TILE = range(3)
"""Features of a row, by which `sources` says what a token is."""
PADDING = 127
"""The conversation of a row's padding."""
FULL_WEIGHT, LAST_DIGIT = 4, 1
"""Weights of learned tokens, in quarters: the last of several digits of a coordinate says little of a box."""

_MISSES = 2  # conversations that don't fit, after which a row is full
_ROOM = 12  # tokens that no conversation fits in


@dataclass(frozen=True)
class Shape:
    """Rows of one kind: their most tokens, the most learned ones, and the rows of two pictures."""

    width: int
    learned: int
    rows: int


SHAPES = {
    "ask": Shape(448, 96, 2),
    "first": Shape(264, 40, 4),
    "point": Shape(448, 224, 2),
    "two": Shape(640, 96, 1),
}
"""Kinds of rows: answers about one picture, one answer to a question before the picture, boxes in one
picture, and both about two."""


@dataclass
class Row:
    """The tokens of a row, each with its conversation (0: what all of them share), its position, and the
    feature that it is, -1 for text; the learned tokens' places, and their weights."""

    ids: list[int] = field(default_factory=list)
    conversations: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    learned: list[int] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)

    def add(self, other: "Row", conversation: int, position: int) -> None:
        """Put tokens behind these, of a conversation, from a position on."""
        self.learned += [len(self.ids) + place for place in other.learned]
        self.weights += other.weights
        self.positions += range(position, position + len(other.ids))
        self.conversations += [conversation] * len(other.ids)
        self.ids += other.ids
        self.sources += other.sources

    def text(self, ids: Sequence[int]) -> None:
        """Add text that is not learned."""
        self.ids += ids
        self.sources += [-1] * len(ids)

    def reply(self, ids: Sequence[int], weights: Sequence[int]) -> None:
        """Add text that is learned."""
        self.learned += range(len(self.ids), len(self.ids) + len(ids))
        self.weights += weights
        self.text(ids)


def picture_layout(grid: Size, side: int, first: int) -> np.ndarray:
    """The features of a picture's tokens, as `VL2Model.arrange` puts them, int [T]. grid: (columns, rows) of
    its local tiles. side: tokens along the side of a tile. first: the feature of its first token."""
    columns, rows = grid
    tiles = first + np.arange((1 + columns * rows) * side**2).reshape(-1, side, side)
    local = tiles[1:].reshape(rows, columns, side, side).transpose(0, 2, 1, 3)
    whole, mosaic = (
        np.pad(part, ((0, 0), (0, 1)), constant_values=NEWLINE).reshape(-1)
        for part in (tiles[0], local.reshape(rows * side, columns * side))
    )
    return np.concatenate((whole, [SEPARATOR], mosaic))


class RowEncoder:
    """Conversations about pictures -> rows. Learned are the answers and the end-of-sentence tokens after
    them.

    `folder` has the model's JSON files.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = TextTokenizer.from_folder(folder)
        config = read_config(folder)
        self.image_id = VL2Processor.from_folder(folder, self.tokenizer, config).image_id
        self.side = config.tile_side
        self.digits = {self.tokenizer.token_id(str(digit)) for digit in range(10)}
        self.det, self.det_end = (self.tokenizer.token_id(mark) for mark in (DET, DET_END))

    def __call__(
        self, conversations: Iterable[Turns], grids: Sequence[Size], form: str, shape: Shape, rng: Random
    ) -> Row:
        """`form`: where the pictures stand, with tiles in `grids`. Conversations that don't fit are left
        out, and none is taken any more once the row is full; after a form that begins with the question, only
        the first one."""
        layouts = [
            picture_layout(grid, self.side, FIRST_TILE + i * VIEWS * self.side**2).tolist()
            for i, grid in enumerate(grids)
        ]
        pictures_first = form.endswith("{}")
        opening = form.rpartition(IMAGE)[0]
        alike = [one for one in FORMS[len(grids)] if pictures_first and one.rpartition(IMAGE)[0] == opening]
        row, shared, number, misses = Row(), 0, 0, 0
        for turns in conversations:
            own = rng.choices(alike, [FORMS[len(grids)][one] for one in alike])[0] if alike else form
            pieces, added = self._question(own, turns[0][0]), Row()
            if not row.ids and pictures_first:
                self._pictures(row, pieces[:-1], layouts)
                row.conversations, row.positions = [0] * len(row.ids), list(range(len(row.ids)))
                shared = len(row.ids)
            if pictures_first:
                added.text(pieces[-1])
            else:
                self._pictures(added, pieces[:-1], layouts)
                added.text(pieces[-1])
            self._replies(added, turns)
            fits = len(row.ids) + len(added.ids) <= shape.width
            if fits and len(row.learned) + len(added.learned) <= shape.learned:
                number += pictures_first
                row.add(added, number, shared)
                if not pictures_first:
                    return row
            else:
                misses += 1
            if misses >= _MISSES * (1 if pictures_first else 4) or len(row.ids) > shape.width - _ROOM:
                break
        return row

    def _question(self, form: str, question: str) -> list[list[int]]:
        return encode_turns(self.tokenizer, [Turn("user", (form.format(question),))])

    def _pictures(self, row: Row, texts: Sequence[Sequence[int]], layouts: Sequence[list[int]]) -> None:
        """Add texts, each with a picture behind it."""
        for text, layout in zip(texts, layouts, strict=True):
            row.text(text)
            row.ids += [self.image_id] * len(layout)
            row.sources += layout

    def _replies(self, row: Row, turns: Turns) -> None:
        """Add the answer to the question that is there, and the turns that follow."""
        for number, (question, answer) in enumerate(turns):
            if number:  # a turn's tokens do not depend on those before it; the first one is BOS
                row.text(self._question("{}", question)[0][1:])
            ids = [*self.tokenizer.encode(answer, bos=False), self.tokenizer.eos_id]
            row.reply(ids, self._weights(ids))

    def _weights(self, ids: Sequence[int]) -> list[int]:
        found, inside = [], False
        for place, token in enumerate(ids):
            inside = (inside or token == self.det) and token != self.det_end
            is_last = token in self.digits and ids[place - 1] in self.digits
            is_last = is_last and ids[place + 1] not in self.digits
            found.append(LAST_DIGIT if inside and is_last else FULL_WEIGHT)
        return found


def row_arrays(rows: Sequence[Row], shape: Shape) -> Arrays:
    """Rows of one shape, padded: `ids`, `positions` and `sources` int16 [N, L], `conversations` int8 [N, L];
    of the learned tokens `before`, the places that predict them, and `targets`, int16 [N, M], and `weights`
    uint8 [N, M], 0 where there is none."""
    count = len(rows)
    found: Arrays = {
        "ids": np.zeros((count, shape.width), np.int16),
        "positions": np.zeros((count, shape.width), np.int16),
        "sources": np.full((count, shape.width), -1, np.int16),
        "conversations": np.full((count, shape.width), PADDING, np.int8),
        "before": np.zeros((count, shape.learned), np.int16),
        "targets": np.zeros((count, shape.learned), np.int16),
        "weights": np.zeros((count, shape.learned), np.uint8),
    }
    for index, row in enumerate(rows):
        for name in ("ids", "positions", "sources", "conversations"):
            values = getattr(row, name)
            found[name][index, : len(values)] = values
        learned, most = np.array(row.learned, np.int64), len(row.learned)
        found["before"][index, :most] = learned - 1
        found["targets"][index, :most] = np.array(row.ids, np.int64)[learned]
        found["weights"][index, :most] = row.weights
    return found
