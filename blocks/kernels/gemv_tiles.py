"""How products of few rows walk through their weights: tiles that were the quickest where they were tried."""

from typing import NamedTuple

MOST_ROWS = 32
"""Up to so many rows plain weights are multiplied here; of more the library's products are quicker."""


class Tile(NamedTuple):
    """How a kernel walks: outputs of a tile, bytes of each output's weights in a turn of its loop, rows that
    it is filled up to. `flip`: the rows are the large side of the tensor cores' tiles. `groups`: of inputs
    that share a scale, in int4, in a turn of the loop."""

    outputs: int
    bytes: int
    warps: int
    stages: int
    rows: int = 8
    flip: bool = False
    groups: int = 1


def fit(tile: Tile, turn_bytes: int, room: int) -> Tile:
    """A tile with as many stages as a program's shared memory has `room` for; all but one of them lie there,
    each with what a turn of the loop reads. (An H100 has 227 KiB, an A100 163, GPUs for desks 99.)"""
    return tile._replace(stages=max(1, min(tile.stages, room // turn_bytes + 1)))


def plan_tile(kind: str, inputs: int, outputs: int, gated: bool, rows: int, groups: int = 1) -> Tile:
    """Tiles for a product of `outputs` outputs, each of one weight row, or two where they are gated;
    `groups` share a scale in int4.

    The quickest of some forty of each in steps of Janus-Pro-1B and 7B on an H100, tried in their place: a
    product that is small alone loads while others compute. One warp multiplies 16 weight rows at a time:
    with more of them on as many, each would turn the same codes into numbers.
    """
    if kind == "int4":
        return _groups(gated, rows, groups)
    if kind == "plain" and rows > 16:
        return _many_rows(inputs, outputs, gated)
    tile = _plain(inputs, outputs, gated) if kind == "plain" else _codes(inputs, outputs, gated)
    if rows > 16:
        return tile._replace(rows=32, bytes=min(tile.bytes, 256), stages=3)
    return tile if rows <= tile.rows else tile._replace(rows=16, stages=min(tile.stages, 4))


def _plain(inputs: int, outputs: int, gated: bool) -> Tile:
    if gated:
        return Tile(16 if inputs <= 2048 else 32, 512, warps=4, stages=2, rows=16, flip=True)
    if outputs > inputs:  # queries, keys and values
        return Tile(32, 256, 2, stages=6) if outputs >= 8192 else Tile(32, 512, 2, stages=3)
    if outputs < inputs:
        return Tile(16, 512, 1, stages=6) if outputs < 4096 else Tile(32, 1024, 2, stages=5)
    if outputs < 2048:
        return Tile(16, 512, 1, stages=5)
    return Tile(16, 1024, 2, stages=3) if outputs < 4096 else Tile(32, 512, 2, stages=4)


def _codes(inputs: int, outputs: int, gated: bool) -> Tile:
    if gated or outputs > inputs:
        return Tile(32, 256, 2, stages=3)
    return Tile(16, 512, 1, stages=6) if outputs < inputs else Tile(32, 256, 2, stages=6)


def _many_rows(inputs: int, outputs: int, gated: bool) -> Tile:
    if gated:
        return Tile(32, 256, 4, stages=3, rows=32)
    if outputs > inputs:
        return Tile(32, 256, 4, stages=6, rows=32) if inputs <= 2048 else Tile(64, 128, 2, stages=5, rows=32)
    return Tile(64, 256, 4, stages=5 if outputs < inputs else 4, rows=32)


def _groups(gated: bool, rows: int, groups: int) -> Tile:
    """Of int4. A row takes as many columns of the products as there are groups in a turn; eight columns are
    the least."""
    at_once = next(count for count in (4, 2, 1) if groups % count == 0)
    filled = max(8 // at_once, min(16, 1 << (rows - 1).bit_length()))
    return Tile(16 if gated else 32, 32 * at_once, 2, stages=4, rows=filled, groups=at_once)
