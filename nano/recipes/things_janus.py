"""The parts of `janus-nano`: its image tokenizer, and what the model is trained on."""

import torch
from torch import Tensor

from ...janus.config import read_config
from ...learn.image_tokenizer import TokenizerObjective, psnr
from ...tokenizers.vq.model import VQModel
from .things_janus_spec import write_folder
from .things_parts import VQ, Job, Made, write_weights
from .things_pictures import PicturePool, picture_shard, to_pixels

FRESH = 10**9
"""Seed of pictures that are in no training."""


def make_tokenizer(job: Job) -> Made:
    """The image tokenizer, from random pictures, half of them mirrored."""
    torch.backends.cudnn.benchmark = True
    if not (job.folder / "config.json").exists():
        write_folder(job.folder)
    pool = PicturePool.render(job.examples[0], job.seed, job.workers, job.device)
    model = VQModel(read_config(job.folder)[0].vq).to(job.device)

    def draw() -> Tensor:
        pixels = to_pixels(pool.draw(job.rows[0])["pixels"].permute(0, 3, 1, 2))
        mirrored = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5
        return torch.where(mirrored, pixels.flip(-1), pixels)

    def write() -> None:
        write_weights(model, job.folder / VQ, torch.bfloat16)
        images = torch.from_numpy(picture_shard(FRESH)["pixels"]).permute(0, 3, 1, 2).to(job.device)
        stored = model.eval().to(torch.bfloat16).float()
        values = torch.cat([psnr(stored, part) for part in images.split(10)])
        print(f"PSNR on {len(values)} fresh pictures: {values.mean():.2f} dB, least {values.min():.2f} dB")

    return TokenizerObjective(model, draw), write
