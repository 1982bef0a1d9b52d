"""What a run needs to go on where it was stopped: trained weights, optimizer and step.

They are written in PyTorch's distributed format, in which any number of processes reads what any other number
has written.
"""

import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from ..blocks.errors import CheckpointError, ResourceError
from ..blocks.placement.memory_budget import size_text
from .distributed import OtherProcessError, from_first, rank

_PATTERN = re.compile(r"step-(\d+)")
_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


def latest(folder: Path) -> tuple[int, Path] | None:
    """Step and folder of the last whole checkpoint, or None."""
    names = os.listdir(folder) if folder.is_dir() else []
    steps = [int(match[1]) for name in names if (match := _PATTERN.fullmatch(name))]
    return (max(steps), folder / f"step-{max(steps)}") if steps else None


def save(folder: Path, step: int, model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    """Write the checkpoint of a step, and remove the ones before it. Every process calls it.

    The checkpoint has its name only once it is whole, whatever stops the run or fills the disk. Raises
    `ResourceError` if it can't be written.
    """
    final, temporary = folder / f"step-{step}", folder / f".step-{step}.part"

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def finish() -> None:
        before = [path for path in folder.iterdir() if _PATTERN.fullmatch(path.name)]
        temporary.rename(final)
        for path in before:
            shutil.rmtree(path)

    try:
        from_first(begin)
        with _one_process_is_meant():
            dcp.save(_state(model, optimizers), checkpoint_id=temporary)
        from_first(finish)
    except (CheckpointException, OSError) as error:  # of any process
        if rank():
            raise OtherProcessError("a checkpoint can't be written") from error
        shutil.rmtree(temporary, ignore_errors=True)
        raise ResourceError(
            f"can't write the checkpoint of step {step} to {folder}, whose disk has "
            f"{size_text(shutil.disk_usage(folder).free)} free; earlier ones are whole: free some space and "
            "run the same command again"
        ) from error


def load(path: Path, model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    """Load a checkpoint into model and optimizers. Raises `CheckpointError` if it is of another model."""
    state = _state(model, optimizers)
    names = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    if missing := [name for name in state["model"] if f"model.{name}" not in names]:
        raise CheckpointError(f"{path} has no {missing[0]}: it is of another model, or of another adapter")
    with _one_process_is_meant():
        dcp.load(state, checkpoint_id=path, planner=DefaultLoadPlanner(allow_partial_load=True))
    set_state_dict(
        model,
        optimizers,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=_TRAINED,
    )
    stored = {name.rpartition(".")[0] for name in names}
    for name, parameter in model.named_parameters():  # what had no gradient so far has no moments
        if f"optimizer.state.{name}" not in stored:
            for optimizer in optimizers:
                optimizer.state.pop(parameter, None)


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """Without PyTorch's warning that there is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _state(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizers, options=_TRAINED)
    return {"model": weights, "optimizer": moments}
