"""Boxes drawn for the page. Imports neither torch nor Gradio, so that the picture workers can draw."""

from collections.abc import Sequence

from PIL import Image

from ...vl2.grounding import Box, draw_boxes

_LEGIBLE = 384
"""Smaller pictures are enlarged by a whole number to at most this side, so that the labels can be read."""


def draw_large(image: Image.Image, boxes: Sequence[Box] = ()) -> Image.Image:
    """The image with its boxes, enlarged where it is small."""
    times = max(1, _LEGIBLE // max(image.size))
    large = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    enlarged = [
        Box(box.label, *(value * times for value in box.pixels), normalized=box.normalized) for box in boxes
    ]
    return draw_boxes(large, enlarged)
