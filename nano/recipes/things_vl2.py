"""How `vl2-nano` 2 is trained on the examples of `things_vl2_data`, which are on the device.

Answers and boxes are learned in tasks of their own, since boxes have many more tokens. B rows, V tiles of a
row, S side of a tile in pixels.
"""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from ...learn.losses import Batch
from ...learn.objectives import Task
from ...learn.packed import PackedRows
from .things_vision import normalize

WEIGHTS = {"ask": 1.0, "point": 0.7, "two": 0.7}
"""Weights of the tasks' losses, by kind of rows."""


def draw(rows: PackedRows, tiles_NV3SS: Tensor, count: int) -> Batch:
    """A batch of random rows with their pictures: `more["pictures"]` holds the numbers of each row's."""
    drawn = rows.draw(count)
    tiles = tiles_NV3SS[drawn.more["pictures"].long()]
    return drawn.reading_tiles(normalize(tiles.flatten(1, 2)))


def vl2_tasks(examples: Mapping[str, Mapping[str, Tensor]], rows: Mapping[str, int]) -> dict[str, Task]:
    """A task for each kind of rows, with so many of them in a batch. examples: those of `make_examples`, as
    tensors on the device."""
    tiles = examples["pictures"]["tiles"]
    return {
        name: Task(partial(draw, PackedRows.from_arrays(examples[name]), tiles, count), WEIGHTS[name])
        for name, count in rows.items()
    }
