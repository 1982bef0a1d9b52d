"""`ImageTransform`: an image resized and padded to Janus's input, S x S pixels. Imports no torch."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from ..blocks.errors import ConfigError
from ..blocks.image_fit import FittedImage, as_tiles, normalization_table, resize_bicubic
from ..blocks.json_config import Section
from ..blocks.picture_settings import check_size


@dataclass(frozen=True)
class ImageTransform:
    """Resizes, pads and normalizes an image to S x S pixels. Defaults are those of all official folders."""

    size: int
    min_size: int = 14
    background: tuple[int, int, int] = (127, 127, 127)
    rescale: float = 0.00392156862745098
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def from_settings(cls, section: Section, size: int) -> "ImageTransform":
        """Read the settings of a folder (`read_picture_settings`). Raises ConfigError.

        `do_normalize` is ignored and taken as true: an early file of Janus-1.3B has it false, but the model
        was trained with it.
        """
        check_size(section, size)
        red, green, blue = background = section.three_numbers("background_color", cls.background)
        if any(value != int(value) for value in background):
            where = section.origin("background_color")
            raise ConfigError(f"{where}.background_color is {background}; accepted: three whole numbers")
        return cls(
            size=size,
            min_size=section.integer("min_size", cls.min_size),
            background=(int(red), int(green), int(blue)),
            rescale=section.number("rescale_factor", cls.rescale),
            mean=section.three_numbers("image_mean", cls.mean),
            std=section.three_numbers("image_std", cls.std),
        )

    @cached_property
    def table(self) -> np.ndarray:
        """The `normalization_table` of the pixels."""
        # The product is taken in float64 and rounded to float32 once, as transformers' `rescale` does.
        levels = (np.arange(256, dtype=np.float64) * self.rescale).astype(np.float32)
        return normalization_table(levels, self.mean, self.std)

    def fit(self, image: Image.Image) -> FittedImage:
        """An RGB image scaled to a long side of S and padded to a square: one tile of S x S."""
        width, height = image.size
        longest = max(width, height)
        # Truncated, not rounded: transformers' port rounds and differs by a row for some sizes.
        new_width = max(int(width / longest * self.size), self.min_size)
        new_height = max(int(height / longest * self.size), self.min_size)
        resized = resize_bicubic(image, (new_width, new_height))
        canvas = Image.new("RGB", (self.size, self.size), self.background)
        canvas.paste(resized, ((self.size - new_width) // 2, (self.size - new_height) // 2))
        return FittedImage(as_tiles(canvas, self.size), image.size)
