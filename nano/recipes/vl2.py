"""How `vl2-nano` is trained: its vision encoder, then the model, on pictures that are made meanwhile."""

import torch
from torch import Tensor

from ...blocks.errors import OptionError
from .parts import MODEL, Job, Made, new_model
from .vision import VisionObjective, write_tower
from .vl2_data import make_pool, write_folder
from .vl2_objective import ConversationObjective, named
from .vl2_spec import tower_config


def make_vision(job: Job) -> Made:
    """The vision encoder, from patches of pictures; `job.rows` is the pairs of a step."""
    pool = make_pool(job, with_rows=False)

    def draw() -> dict[str, Tensor]:
        return named(pool.draw(job.rows[0]))["pictures"]

    objective = VisionObjective(tower_config(), draw, job.device, refresh=pool.refresh)

    def write() -> None:
        pool.close()
        write_tower(objective, job.folder)

    return objective, write


def make_model(job: Job) -> Made:
    """The model, from conversations about `job.rows` pairs of pictures a step, with the encoder of
    `make_vision`; or going on from the model folder `job.start`."""
    if (job.folder / MODEL).exists():
        raise OptionError(f"{job.folder / MODEL} is there already; accepted: a folder without a model")
    if not (job.folder / "config.json").exists():
        write_folder(job.folder)
    pool = make_pool(job, with_rows=True)
    pipe = new_model(job, {}, "vision")
    objective = ConversationObjective(pipe.model, pool, job.rows[0])

    def write() -> None:
        pool.close()
        pipe.to(torch.bfloat16).save_pretrained(job.folder / MODEL)

    return objective, write
