"""Tiles: the table computed with the official function, token counts, the official list of resolutions."""

import json
from pathlib import Path

import pytest
import torch
from bifrons.blocks.errors import OptionError
from bifrons.blocks.image_fit import FittedImage, normalized
from bifrons.vl2.tiles import (
    PixelNormalization,
    candidate_resolutions,
    cut_tiles,
    num_image_tokens,
    select_best_resolution,
)
from PIL import Image

OFFICIAL = Path(__file__).parent.parent / "data" / "vl2_official"
SETTINGS = json.loads((OFFICIAL / "deepseek-vl2.processor_config.json").read_text())
CANDIDATES = [tuple(pair) for pair in SETTINGS["candidate_resolutions"]]


def test_the_official_table():
    table = json.loads((OFFICIAL / "tile_table.json").read_text())
    assert len(table) == 25
    for row in table:
        best = select_best_resolution(tuple(row["image_wh"]), CANDIDATES)
        assert list(best) == row["best_wh"], row
        grid = best[0] // 384, best[1] // 384
        assert list(grid) == row["spatial_crop_w_h"]
        assert 1 + grid[0] * grid[1] == row["tiles_in_vit"]
        assert num_image_tokens(grid, 14) == row["image_tokens"]


def test_nine_tiles_are_the_official_list():
    assert list(candidate_resolutions(9, 384)) == CANDIDATES
    more = candidate_resolutions(18, 384)
    assert more[: len(CANDIDATES)] == tuple(CANDIDATES)
    assert max(w * h for w, h in more) == 18 * 384 * 384
    with pytest.raises(OptionError, match="at least 1"):
        candidate_resolutions(0, 384)


def test_tiles_are_the_global_view_and_the_picture_row_by_row():
    picture = Image.new("RGB", (20, 10))
    picture.paste((255, 0, 0), (0, 0, 10, 10))
    picture.paste((0, 255, 0), (10, 0, 20, 10))
    normalization = PixelNormalization()
    fitted = FittedImage(cut_tiles(picture, (20, 20), 10, normalization.background), picture.size)
    tiles = torch.from_numpy(normalized([fitted], normalization.table, 10))
    assert tiles.shape == (5, 3, 10, 10)
    assert tiles[0, :, 0, 0].tolist() == pytest.approx([127 / 127.5 - 1] * 3, abs=1e-6)  # padding
    # The picture fills rows 5 to 15 of the mosaic: red in the left tiles, green in the right ones.
    for number, red in ((1, 1.0), (2, -1.0), (3, 1.0), (4, -1.0)):
        row = 9 if number < 3 else 0
        assert torch.equal(tiles[number, :2, row, 5], torch.tensor([red, -red]))


@pytest.mark.parametrize("size", [(1, 1), (4000, 1), (1, 4000), (3, 1999)])
def test_odd_shapes_make_whole_tiles(size: tuple[int, int]):
    best = select_best_resolution(size, CANDIDATES)
    tiles = cut_tiles(Image.new("RGB", size), best, 384, PixelNormalization().background)
    assert tiles.shape == (1 + best[0] * best[1] // 384**2, 3, 384, 384)
