"""Seeds and options of images, from Python, numpy and torch."""

from typing import Any

import numpy as np
import pytest
import torch
from bifrons.blocks.errors import OptionError
from bifrons.blocks.image_prompts import image_seeds
from bifrons.janus.image_generation import ImageGenerationOptions

LAST = 2**64 - 1


def test_options_hold_pythons_numbers():
    given: Any = (np.float32(2.5), np.float64(1), np.uint8(9), torch.tensor(0.5))
    options = ImageGenerationOptions(*given, speculate=np.int64(4))  # type: ignore[arg-type]
    assert {type(value) for value in vars(options).values()} == {int, float, type(None)}
    assert (options.guidance_scale, options.top_k, options.top_p, options.speculate) == (2.5, 9, 0.5, 4)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (np.uint64(LAST), [LAST, 0, LAST, 0]),  # 0 follows the largest seed
        (torch.tensor(5), [5, 6, 5, 6]),
        ([np.int64(1), 2**63], [1, 2, 2**63, 2**63 + 1]),
        (np.array([1, LAST], np.uint64), [1, 2, LAST, 0]),
        (torch.tensor([4, 3, 2, 1]), [4, 3, 2, 1]),
        ((7, 7, 7, 7), [7, 7, 7, 7]),
    ],
)
def test_seeds_of_images(seed, expected):
    assert image_seeds(seed, 2, 2) == expected
    assert len(set(image_seeds(None, 2, 2))) == 4


BAD_SEEDS = [-1, 2**64, 1.0, "12", "ab", [1], [1, 2, 3], np.zeros((2, 2)), {1: 2}, [0, -1], [0, True]]


@pytest.mark.parametrize("seed", BAD_SEEDS)
def test_seeds_that_are_refused(seed):
    with pytest.raises(OptionError, match=r"seed is .*accepted"):
        image_seeds(seed, 2, 2)
