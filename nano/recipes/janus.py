"""The parts of `janus-nano`: its image tokenizer; and the model, which learns to paint from sentences with
the codes of their pictures, and to read from conversations.
"""

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...blocks.errors import OptionError
from ...janus.config import read_config
from ...learn.image_tokenizer import TokenizerObjective, psnr
from ...learn.losses import Batch
from ...learn.objectives import ModelObjective, Task
from ...learn.packed import PackedRows, load_rows
from ...tokenizers.vq.model import VQModel
from .janus_data import PAINT, READ, RESTATE
from .janus_spec import TurnEncoder, write_once
from .parts import MODEL, VQ, Job, Made, new_model, write_weights
from .pictures import PicturePool, picture_shard, to_pixels

FRESH = 10**9
"""Seed of pictures that are in no training."""
UNCONDITIONAL = 0.1
"""Share of sentences that are replaced by padding, for guidance."""
PAINT_WEIGHT, READ_WEIGHT, RESTATE_WEIGHT = 8.0, 0.7, 0.5
"""Weights of the losses of images, of answers and of restated sentences. The first is a mean over 576 codes,
of which few say which color or side belongs to which thing."""
WARMUP = 0.08
"""Share of the image tokenizer's training without quantization."""


def make_tokenizer(job: Job) -> Made:
    """The image tokenizer, from random pictures, half of them mirrored."""
    torch.backends.cudnn.benchmark = True
    write_once(job.folder)
    pool = PicturePool.render(job.examples[0], job.seed, job.workers, job.device)
    model = VQModel(read_config(job.folder)[0].vq).to(job.device)
    if job.start is not None:
        model.load_state_dict({name: value.float() for name, value in load_file(job.start).items()})

    def draw() -> Tensor:
        pixels = to_pixels(pool.draw(job.rows[0])["pixels"].permute(0, 3, 1, 2))
        mirrored = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5
        return torch.where(mirrored, pixels.flip(-1), pixels)

    def write() -> None:
        write_weights(model, job.folder / VQ, torch.bfloat16)
        pixels = picture_shard(FRESH)["pixels"][: job.examples[0]]
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(job.device)
        stored = model.eval().to(torch.bfloat16).float()
        values = torch.cat([psnr(stored, part) for part in images.split(10)])
        print(f"PSNR on {len(values)} fresh pictures: {values.mean():.2f} dB, least {values.min():.2f} dB")

    warmup = WARMUP if job.start is None else 0.0
    return TokenizerObjective(model, draw, warmup), write


def janus_tasks(
    paint: PackedRows,
    read: PackedRows,
    restated: PackedRows,
    encoder: TurnEncoder,
    rows: tuple[int, ...],
) -> dict[str, Task]:
    """Painting, reading and restating, with so many rows of each in a batch, of examples on the device."""

    def draw_paint() -> Batch:
        drawn = paint.draw(rows[0])
        return drawn.painting(drawn.more["codes"], encoder.processor.pad_id, UNCONDITIONAL)

    def draw_read() -> Batch:
        drawn = read.draw(rows[1])
        return drawn.reading(to_pixels(drawn.more["tiles"]), encoder.image_places)

    restate = Task(lambda: restated.draw(rows[2]).answering(), RESTATE_WEIGHT)
    return {"paint": Task(draw_paint, PAINT_WEIGHT), "read": Task(draw_read, READ_WEIGHT), "restate": restate}


def make_model(job: Job) -> Made:
    """The model, from the folder's examples, with its image tokenizer and its vision encoder; or going on
    from the model folder `job.start`."""
    if (job.folder / MODEL).exists():
        raise OptionError(f"{job.folder / MODEL} is there already; accepted: a folder without a model")
    if not (job.folder / READ).exists():
        raise OptionError(f"{job.folder} has no {PAINT} and {READ}: run the part janus-data first")
    pipe = new_model(job, {"gen_vision_model": job.folder / VQ}, "vision_model.vision_tower")
    paint, read, restated = (load_rows(job.folder / name).to(job.device) for name in (PAINT, READ, RESTATE))
    tasks = janus_tasks(paint, read, restated, TurnEncoder(job.folder), job.rows)
    return ModelObjective(pipe.model, tasks), lambda: pipe.to(torch.bfloat16).save_pretrained(
        job.folder / MODEL
    )
