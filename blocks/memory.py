"""How much memory there is, and how much a batch needs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from .model.decoder import Layout

# Rows that the CPU computes together: beyond this a larger batch is no faster there.
_CPU_ROWS = 64
_USABLE = 0.8


def free_bytes(device: torch.device) -> int:
    """Memory that a new allocation can have: of the GPU, or of this machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def held_bytes(module: nn.Module) -> int:
    """What the parameters and buffers of a module take."""
    return sum(tensor.numel() * tensor.itemsize for tensor in [*module.parameters(), *module.buffers()])


def rows_that_fit(bytes_per_row: int, device: torch.device, layout: "Layout | None" = None) -> int:
    """How many rows of that size to compute at once; at least one. With a `layout`, each device holds what
    its layers have of a row."""
    fitting = max(1, int(free_bytes(device) * _USABLE) // bytes_per_row)
    if layout is not None:
        parts = {one: layout.layers.count(one) / len(layout.layers) for one in layout.layers}
        room = {one: free_bytes(one) - (layout.moved if one == layout.main else 0) for one in parts}
        fitting = max(1, min(int(room[one] * _USABLE / (bytes_per_row * parts[one])) for one in parts))
    return min(fitting, _CPU_ROWS) if device.type == "cpu" else fitting
