"""What the parts of `train` have in common: what a part is told, and what it makes of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ...blocks.files import temporary_path
from ...learn.distributed import rank
from ...learn.pretraining import Pretraining, PretrainingOptions
from ...learn.run_folder import cut_log
from ...learn.scratch import from_scratch

VQ, TOWER, MODEL = "vq.safetensors", "vision.safetensors", "model"
"""Results in a folder: of the image tokenizer, of the vision encoder, and of the model."""


@dataclass(frozen=True)
class Job:
    """What a part is told: its folder, the rows of a batch by task, how many examples of each kind it draws
    from, the processes that make them, where it is trained, and the weights or model that it goes on from."""

    folder: Path
    rows: tuple[int, ...]
    examples: tuple[int, ...]
    seed: int
    workers: int
    device: torch.device
    start: Path | None = None


Made = tuple[Any, Callable[[], object]]
"""The `Objective` that a part trains, and what writes its result."""


def new_model(job: Job, parts: dict[str, Path], encoder: str) -> Any:
    """A pipeline of the folder's model with new weights, those of `parts` (files by module name) and of the
    vision `encoder`, a module too; or with the weights of the model folder `job.start` but for `parts`."""
    towers = {} if job.start else {encoder: job.folder / TOWER}
    pipe = from_scratch(job.folder, job.device, job.seed, parts | towers)
    if job.start is not None:
        own = pipe.model.state_dict()
        before = type(pipe).from_pretrained(job.start, "cpu", "float32").model.state_dict()
        unchanged = {name: own[name] for name in own if name.startswith(tuple(f"{part}." for part in parts))}
        pipe.model.load_state_dict(before | unchanged)
    return pipe


def write_weights(module: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Write a module's weights; an old file stays whole until the new one is."""
    weights = {name: value.to(dtype).contiguous() for name, value in module.state_dict().items()}
    with temporary_path(path) as temporary:
        save_file(weights, temporary, {"format": "pt"})
        temporary.replace(path)


def run_part(made: Made, options: PretrainingOptions, run_folder: Path, began: float) -> int:
    """Train what a part made to its end, saying the losses now and then, and write its result. `began`: when
    the process began, on the monotonic clock. Returns the number of steps."""
    objective, write = made
    run = Pretraining(objective, options, run_folder)
    if step := run.resume():
        print(f"goes on from step {step:,}", flush=True)
    if rank() == 0:
        cut_log(run_folder, run.step)

    def show(figures: dict[str, float]) -> None:
        if figures["step"] % 200 == 0 or run.device.type == "cpu":
            losses = " ".join(f"{k.removesuffix('_loss')} {v:.4f}" for k, v in figures.items() if "loss" in k)
            print(f"{time.monotonic() - began:.0f}s: step {figures['step']:,} {losses}", flush=True)

    run.run(show)
    with run.averaged():
        if rank() == 0:
            write()
    return run.step
