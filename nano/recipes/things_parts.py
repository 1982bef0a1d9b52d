"""What the parts of `things_train` have in common: what a part is told, and what it makes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ...blocks.files import temporary_path

VQ, TOWER, MODEL = "vq.safetensors", "vision.safetensors", "model"
"""Results in a folder: of the image tokenizer, of the vision encoder, and of the model."""


@dataclass(frozen=True)
class Job:
    """What a part is told: its folder, the rows of a batch by task, how many examples of each kind it draws
    from, the processes that make them, where it is trained, and a file of weights that it starts from."""

    folder: Path
    rows: tuple[int, ...]
    examples: tuple[int, ...]
    seed: int
    workers: int
    device: torch.device
    start: Path | None = None


Made = tuple[Any, Callable[[], object]]
"""The `Objective` that a part trains, and what writes its result."""


def write_weights(module: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Write a module's weights; an old file stays whole until the new one is."""
    weights = {name: value.to(dtype).contiguous() for name, value in module.state_dict().items()}
    with temporary_path(path) as temporary:
        save_file(weights, temporary, {"format": "pt"})
        temporary.replace(path)
