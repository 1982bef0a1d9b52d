"""Where the models of several processes lie, and how many processes there are."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..blocks.device import free_bytes, resolve_device
from ..blocks.errors import OptionError

_MEMORY_FACTOR = 3
"""Memory of a generating process on the CPU (weights, cache, activations) as a multiple of its weights."""


@dataclass(frozen=True)
class Placement:
    """Where a worker's model lies, which determines no result; picklable.

    device_map, max_memory, tensor_parallel: as in `blocks.placement.device_map.LoadOptions`. eager: capture
    no CUDA graphs.
    """

    device_map: str | Mapping[str, Any] | None = None
    max_memory: Mapping[str, Any] | None = None
    eager: bool = False
    tensor_parallel: int | None = None

    @property
    def takes_all(self) -> bool:
        """Whether one model takes all devices, so that there is no second process."""
        return self.device_map is not None or self.tensor_parallel not in (None, 1)

    def check(self, device: str | None, processes: int | None) -> None:
        """Raise OptionError for options that exclude each other."""
        if self.takes_all and processes not in (None, 1):
            raise OptionError(
                f"processes is {processes}, but device_map and tensor_parallel spread one model over all "
                "devices; accepted: 1"
            )
        if self.device_map is None:
            if self.max_memory is not None:
                raise OptionError("max_memory has no device_map; accepted: with device_map auto or balanced")
        elif device is not None:
            raise OptionError(f"device is {device!r} and there is a device_map too; accepted: one of them")

    def keywords(self, device: str | None) -> dict[str, Any]:
        """The arguments of `from_pretrained` in a process that was given a device."""
        return {
            "device": device if self.device_map is None else None,
            "device_map": self.device_map,
            "max_memory": self.max_memory,
            "capture": False if self.eager else None,
            "tensor_parallel": self.tensor_parallel,
        }


NO_PLACEMENT = Placement()
"""The whole model on the process's device."""


def default_processes(device: str | None, weights: int) -> int:
    """One per GPU, or one per CPU core as far as the memory allows. weights: bytes in float32."""
    chosen = torch.device(resolve_device(device))
    if chosen.type == "cuda":
        return torch.cuda.device_count() if chosen.index is None else 1
    if chosen.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, free_bytes(chosen) // max(1, _MEMORY_FACTOR * weights)))


def device_names(kind: str, processes: int) -> list[str]:
    """The device of each process: those of a kind in turn."""
    if kind != "cuda":
        return [kind] * processes
    return [f"cuda:{i % torch.cuda.device_count()}" for i in range(processes)]


def weights_bytes(folder: Path) -> int:
    """The size of a checkpoint's weights in float32, in bytes."""
    from ..blocks.checkpoints.reader import list_tensors

    return sum(entry.nbytes // entry.dtype.itemsize * 4 for entry in list_tensors(folder).values())
