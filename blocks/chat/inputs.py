"""`ChatInputs`: a conversation as a model takes it, with its images in 8 bits until they are embedded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..device import upload
from ..image_fit import FittedImage, normalized


@dataclass(frozen=True, eq=False)
class ChatInputs:
    """T tokens of a conversation, N tiles of all its images, S tile side in pixels.

    `ids` int64 [T]; `image_mask` bool [T], true at image tokens; `side` is S. `table` float32 [3, 256] holds
    the normalized value of each channel and level. With `continues` the answer goes on right after the last
    word of an unfinished one.
    """

    ids: Tensor
    image_mask: Tensor
    images: tuple[FittedImage, ...]
    table: np.ndarray
    side: int
    continues: bool

    @property
    def pixels(self) -> Tensor:
        """Normalized pixels, float32 [N, 3, S, S]."""
        return normalized_pixels([self], torch.device("cpu"))


def normalized_pixels(inputs: Sequence[ChatInputs], device: torch.device) -> Tensor:
    """Normalized pixels of all images of some conversations with one model, float32 [N, 3, S, S]."""
    images = [image for one in inputs for image in one.images]
    table, side = inputs[0].table, inputs[0].side
    if device.type == "cpu" or not images:
        return torch.from_numpy(normalized(images, table, side)).to(device)
    tiles = upload(torch.from_numpy(np.concatenate([image.tiles for image in images])), device)
    levels = upload(torch.from_numpy(table), device)
    return torch.stack([levels[channel][tiles[:, channel].int()] for channel in range(3)], dim=1)
