"""Generated pictures in another size than the model's: what is accepted, and the scaling."""

import re

from PIL import Image

from ..blocks.errors import OptionError
from ..blocks.generated_image import GeneratedImage
from ..blocks.json_config import shown

MIN_SIDE, MAX_SIDE = 16, 4096


def parse_size(text: str, option: str = "resize") -> tuple[int, int]:
    """Width and height of `768x512` (or `768X512`, `768×512`). Raises `OptionError` outside the limits."""
    found = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", text, re.ASCII)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
        raise OptionError(
            f"{option} is {shown(text)}; accepted: WIDTHxHEIGHT in pixels, such as 768x768, each from "
            f"{MIN_SIDE} to {MAX_SIDE}"
        )
    return size


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture scaled by Lanczos to (width, height); a new shape stretches it. It has the settings of the
    image, with the new size as `resize`."""
    if image.size == size:
        return image
    scaled = image.resize(size, Image.Resampling.LANCZOS)
    scaled.info = {**image.info, "resize": "{}x{}".format(*size)}
    return GeneratedImage.of(scaled)
