"""Tiles of linear layers for a few rows fit into the shared memory of every GPU that kernels serve."""

import pytest

pytest.importorskip("triton")
from bifrons.blocks.kernels.gemv import limit_stages, plan_part, plan_tile

SHAPES = [
    (2048, 6144, False),
    (4096, 4096, False),
    (4096, 11008, True),
    (11008, 4096, False),
    (1280, 1280, False),
    (1536, 8960, True),
    (8960, 1536, False),
]
BYTES = {"plain": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.5}
KIB = 1024


@pytest.mark.parametrize("kind", BYTES)
@pytest.mark.parametrize("rows", [1, 2, 5, 9, 16, 17, 40])
@pytest.mark.parametrize("shape", SHAPES)
def test_stages_fit(shape: tuple[int, int, bool], rows: int, kind: str) -> None:
    inputs, outputs, gated = shape
    tile = plan_tile(kind, inputs, outputs, gated, rows, inputs // 64)
    numbers = tile.bytes / BYTES[kind]
    iteration = int(tile.bytes * tile.outputs * (1 + gated) + numbers * 2 * tile.rows)
    assert limit_stages(tile, iteration, 227 * KIB) == tile  # where they were measured
    for shared_memory in (163 * KIB, 99 * KIB):
        fitted = limit_stages(tile, iteration, shared_memory)
        assert fitted._replace(stages=tile.stages) == tile
        assert 2 <= fitted.stages <= tile.stages
        assert (fitted.stages - 1) * iteration <= shared_memory
        assert fitted.stages == tile.stages or fitted.stages * iteration > shared_memory


def test_parts_by_shape() -> None:
    """Of few outputs only, of whole blocks; the rows have no say."""
    assert plan_part("plain", 8960, 1536) == 1280
    assert plan_part("plain", 1536, 1536) == 384
    assert plan_part("plain", 5632, 2048) == 2816
    assert plan_part("plain", 11008, 4096) == 11008
    assert plan_part("int4", 11008, 4096) == 1536
    assert plan_part("int4", 4096, 4096) == 1024
    assert plan_part("int8", 11008, 4096) == 2816
    assert plan_part("int4", 256, 64) == 256
