"""How `vl2-nano` 2 is trained on the examples of `things_vl2_data`, which are on the device.

Answers and boxes are learned in tasks of their own, since boxes have many more tokens. B rows, V tiles of a
row, S side of a tile in pixels.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from ...blocks.errors import OptionError
from ...learn.losses import Batch
from ...learn.objectives import ModelObjective, Task
from ...learn.packed import PackedRows
from ...learn.scratch import from_scratch
from .things_parts import MODEL, TOWER, Job, Made
from .things_vision import make_tower, normalize
from .things_vl2_data import WIDTHS, Examples, make_examples, write_folder
from .things_vl2_spec import tower_config

WEIGHTS = {"ask": 1.0, "point": 0.7, "two": 0.7}
"""Weights of the tasks' losses, by kind of rows."""
BALANCE = 0.02
"""Weight of the loss that has experts used alike."""


def draw(rows: PackedRows, tiles_NV3SS: Tensor, count: int) -> Batch:
    """A batch of random rows with their pictures: `more["pictures"]` holds the numbers of each row's."""
    drawn = rows.draw(count)
    tiles = tiles_NV3SS[drawn.more["pictures"].long()]
    return drawn.reading_tiles(normalize(tiles.flatten(1, 2)))


def vl2_tasks(examples: Examples, rows: Mapping[str, int]) -> dict[str, Task]:
    """A task for each kind of rows, with so many of them in a batch, of the examples of `make_examples`."""
    tiles = examples["pictures"]["tiles"]
    return {
        name: Task(partial(draw, PackedRows.from_arrays(examples[name]), tiles, count), WEIGHTS[name])
        for name, count in rows.items()
    }


def _examples(job: Job) -> Examples:
    if not (job.folder / "config.json").exists():
        write_folder(job.folder)
    return make_examples(job.folder, job.examples[0], job.seed, job.workers, job.device)


def make_vision(job: Job) -> Made:
    """The vision encoder, from patches of `job.examples` pictures."""
    return make_tower(tower_config(), _examples(job)["pictures"], job)


def make_model(job: Job) -> Made:
    """The model, from conversations about `job.examples` pictures, with the encoder of `make_vision`."""
    if (job.folder / MODEL).exists():
        raise OptionError(f"{job.folder / MODEL} is there already; accepted: a folder without a model")
    examples = _examples(job)
    pipe = from_scratch(job.folder, job.device, job.seed, {"vision": job.folder / TOWER})
    tasks = vl2_tasks(examples, dict(zip(WIDTHS, job.rows, strict=True)))
    objective = ModelObjective(pipe.model, tasks, balance=BALANCE)
    return objective, lambda: pipe.to(torch.bfloat16).save_pretrained(job.folder / MODEL)
