"""What `vl2-nano` is trained on: conversations about one picture, and about two.

P pictures, V views of a picture, H height, W width; 3 is red, green, blue, 4 is x0, y0, x1, y1.
"""

from pathlib import Path

import torch
from torch import Tensor

from ...learn.losses import Batch
from ...learn.objectives import Task
from ...learn.packed import load_rows
from ...vl2.model import VL2Model
from .pictures import constant, draw_pixels, jitter
from .vision import TOWERS
from .vl2_spec import ConversationEncoder

ONE, TWO = "one.safetensors", "two.safetensors"
"""Files of `vl2_data`."""
TWO_WEIGHT = 0.5
"""Weight of the loss of answers about two pictures."""
FRAME = (1.0, -1.0, -1.0)
"""Color of the frame around an example object, RGB in -1..1."""
FRAME_PIXELS = 2
"""Width of the frame."""


def draw_frames(pixels_P3HW: Tensor, frames_P4: Tensor) -> Tensor:
    """Draw one frame on each square image in -1..1, as `draw_boxes` does.

    Frames are x0, y0, x1, y1 in 0..1; all zeros draws none.
    """
    corners = (frames_P4 * pixels_P3HW.shape[-1]).floor()[:, :, None]
    positions = torch.arange(pixels_P3HW.shape[-1], device=pixels_P3HW.device)

    def inside(axis: int, margin: int) -> Tensor:
        return (positions >= corners[:, axis] + margin) & (positions <= corners[:, axis + 2] - margin)

    outer = inside(1, 0)[:, :, None] & inside(0, 0)[:, None]
    inner = inside(1, FRAME_PIXELS)[:, :, None] & inside(0, FRAME_PIXELS)[:, None]
    framed = (frames_P4[:, 2] > 0)[:, None, None]
    color = constant(FRAME, pixels_P3HW.device)[:, None, None]
    return torch.where((outer & ~inner & framed)[:, None], color, pixels_P3HW)


def vl2_tasks(model: VL2Model, folder: Path, one_rows: int, two_rows: int) -> dict[str, Task]:
    """Conversations about one picture and about two, with so many rows of each in a batch, of the examples in
    a folder."""
    device = model.decoder.device
    encoder, views = ConversationEncoder(folder), TOWERS["vl2"][1]
    one, two = load_rows(folder / ONE).to(device), load_rows(folder / TWO).to(device)

    def draw_one() -> Batch:
        rows = one.draw(one_rows)
        pixels = views.cut(draw_pixels(jitter(rows.more)))
        return rows.reading(pixels, encoder.image_places[: encoder.image_tokens])

    def draw_two() -> Batch:
        rows = two.draw(two_rows)
        # The first are not jittered, since the frames are fitted to the objects.
        scenes = {name: value for name, value in rows.more.items() if "." not in name and name != "frame"}
        first = draw_frames(draw_pixels(scenes), rows.more["frame"].float())
        others = {name: rows.more[f"second.{name}"] for name in scenes}
        pairs = torch.stack((first, draw_pixels(jitter(others))), dim=1)
        return rows.reading(views.cut(pairs.flatten(0, 1)), encoder.image_places)

    return {"one": Task(draw_one), "two": Task(draw_two, TWO_WEIGHT)}
