"""Previews of images in work: what stands where nothing is painted yet."""

import numpy as np
import torch
from bifrons.blocks.generation_step import fill_up, hide_unpainted
from PIL import Image


def test_previews_are_transparent_where_nothing_is_painted():
    preview = np.array(hide_unpainted(Image.new("RGB", (40, 40), "red"), 6, 16))
    assert (preview[:10, :, 3] == 255).all()  # 4 of 6 tokens are the first of four rows, 2 begin the second
    assert (preview[10:20, :20, 3] == 255).all()
    assert preview[10:20, 20:, 3].max() == 0
    assert preview[20:, :, 3].max() == 0


def test_columns_of_codes_in_work_go_on_with_their_last_code():
    codes = torch.arange(6)[None]
    assert fill_up(codes, 16).reshape(4, 4).tolist() == [
        [0, 1, 2, 3],
        [4, 5, 2, 3],
        [4, 5, 2, 3],
        [4, 5, 2, 3],
    ]
    assert fill_up(torch.arange(8)[None], 16)[0, 8:].tolist() == [4, 5, 6, 7] * 2
    assert fill_up(torch.tensor([[9]]), 4).tolist() == [[9, 9, 9, 9]]
    assert fill_up(torch.arange(4)[None], 4).tolist() == [[0, 1, 2, 3]]
