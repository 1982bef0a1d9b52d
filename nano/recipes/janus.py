"""What `janus-nano` is trained on: sentences with the codes of their pictures, and conversations.

A quarter of the pictures of conversations are passed through the image tokenizer, so that the model also
understands the pictures it paints.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...janus.model import JanusModel
from ...learn.losses import Batch
from ...learn.objectives import Task
from ...learn.packed import PackedRows, load_rows
from .pictures import draw_pixels, jitter
from .things_janus_spec import TurnEncoder

PAINT, READ = "paint.safetensors", "read.safetensors"
"""Files of `janus_data`."""
UNCONDITIONAL = 0.1
"""Share of sentences that are replaced by padding, for guidance."""
RECONSTRUCTED = 0.25
"""Share of the pictures to understand that are encoded and decoded by the image tokenizer."""
READ_WEIGHT = 0.7
"""Weight of the loss of answers."""
_AT_ONCE = 1024


@torch.no_grad()
def encode_all(model: JanusModel, scenes: Mapping[str, Tensor]) -> Tensor:
    """Codes of packed scenes, int16 `[N, T]`.

    Always computed in bfloat16: on a plain background, where several codes fit almost equally well, rounding
    decides between them.
    """
    parts = []
    for start in range(0, len(scenes["shape"]), _AT_ONCE):
        pixels = draw_pixels({name: value[start : start + _AT_ONCE] for name, value in scenes.items()})
        with torch.autocast(pixels.device.type, torch.bfloat16):
            codes = model.gen_vision_model.encode(pixels.contiguous(memory_format=torch.channels_last))
        parts.append(codes.short())
    return torch.cat(parts)


@torch.no_grad()
def reconstruct(model: JanusModel, pixels: Tensor) -> Tensor:
    """Pictures in -1..1, encoded and decoded by the image tokenizer."""
    vq = model.gen_vision_model
    return vq.decode(vq.encode(pixels), model.config.grid).clamp(-1, 1)


def janus_tasks(model: JanusModel, folder: Path, paint_rows: int, read_rows: int) -> dict[str, Task]:
    """Painting and reading, with so many rows of each in a batch, of the examples in a folder."""
    device = model.decoder.device
    encoder = TurnEncoder(folder)
    places = encoder.image_places
    model.gen_vision_model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    paint, read = load_rows(folder / PAINT).to(device), load_rows(folder / READ).to(device)
    paint = replace(paint, more={"codes": encode_all(model, paint.more)})

    def draw_paint() -> Batch:
        rows = paint.draw(paint_rows)
        return rows.painting(rows.more["codes"], encoder.processor.pad_id, UNCONDITIONAL)

    def draw_read() -> Batch:
        rows: PackedRows = read.draw(read_rows)
        pixels = draw_pixels(jitter(rows.more))
        split = int(read_rows * RECONSTRUCTED)
        pixels = torch.cat((reconstruct(model, pixels[:split]).float(), pixels[split:]))
        return rows.reading(pixels[:, None], places)

    return {"paint": Task(draw_paint), "read": Task(draw_read, READ_WEIGHT)}
