"""Checks what fits in free memory: weights before they are loaded, and batches before they are computed."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from ..checkpoints.quantize import check_device
from ..device import free_bytes
from ..errors import ResourceError
from ..kernels.codec import KINDS
from ..model.context import DeviceLayout
from .memory_estimate import Workload, model_bytes

_USABLE = 0.8  # of free memory: activations are rough estimates, and the allocator fragments
_CPU_ROWS = 64  # larger batches are no faster on a CPU


def size_text(count: int) -> str:
    """A human-readable number of bytes, in powers of 1000: `4.18 GB`."""
    if count < 1000:
        return f"{count} B"
    value, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def check_weights(
    name: str,
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    kind: str | None,
    keep_float32: Callable[[str], bool],
    instead: str = "",
) -> None:
    """Raise `ResourceError` for weights that exceed a device's free memory or whose dtype it lacks.

    `model` is a plain one on meta; its weights will be quantized to `kind`. The message names the model
    `name`, lists smaller forms with their sizes, and ends with `instead`, another way out.
    """
    if device.type == "meta":
        return
    check_device(kind, device)
    needed, free = model_bytes(model, dtype, kind, keep_float32), free_bytes(device)
    if needed <= free:
        return
    forms: list[tuple[str, torch.dtype, str | None]] = [("as bfloat16", torch.bfloat16, None)]
    forms += [(f"as bfloat16 with {k} weights", torch.bfloat16, k) for k in KINDS]
    sizes = [(text, model_bytes(model, form, k, keep_float32)) for text, form, k in forms]
    smaller = ", ".join(f"{size_text(size)} {text}" for text, size in sizes if size < needed)
    raise ResourceError(
        f"{name} needs {size_text(needed)} for its weights as {form_text(dtype, kind)} on {device}, where "
        f"{size_text(free)} are free; accepted: what fits{f' ({smaller})' if smaller else ''}{instead}"
    )


def form_text(dtype: torch.dtype, kind: str | None) -> str:
    """The form of weights in words: `bfloat16 with int8 weights`."""
    return str(dtype).removeprefix("torch.") + (f" with {kind} weights" if kind else "")


def batch_that_fits(work: Workload, device: torch.device, dtype: torch.dtype, reclaimable: int = 0) -> int:
    """Largest batch of a workload that fits in the memory that is free now, at least 1.

    `reclaimable` is added to the free bytes; a negative number reserves memory.
    """
    budget = int((free_bytes(device) + reclaimable) * _USABLE)
    once = max(0, work.activation_bytes(0, dtype))
    each = work.cache_bytes(1, dtype)
    fitting = min(
        (budget - once) // max(each, 1),
        budget // (each + max(work.activations * dtype.itemsize, work.sampling * torch.float32.itemsize)),
    )
    return max(1, min(fitting, _CPU_ROWS) if device.type == "cpu" else fitting)


def batch_over_devices(work: Workload, layout: DeviceLayout, dtype: torch.dtype) -> int:
    """`batch_that_fits` for a decoder over several devices. Each holds the caches of its layers; on the main
    one, room for offloaded weights is reserved."""
    fitting = []
    for device in dict.fromkeys([layout.main, *layout.layers]):
        cache = -(-work.cache * layout.layers.count(device) // len(layout.layers))
        share = replace(work, cache=cache)
        fitting.append(batch_that_fits(share, device, dtype, -_reserved(layout, device)))
    return min(fitting)


def rows_that_fit(bytes_per_row: int, device: torch.device, layout: DeviceLayout | None = None) -> int:
    """Number of rows of this size that fit in free memory, at least 1.

    With a `layout`, a row is divided among its devices by the number of their layers.
    """
    fitting = int(free_bytes(device) * _USABLE) // bytes_per_row
    if layout is not None:
        shares = {one: layout.layers.count(one) / len(layout.layers) for one in layout.layers}
        free = {one: free_bytes(one) - _reserved(layout, one) for one in shares}
        fitting = min(int(free[one] * _USABLE / (bytes_per_row * shares[one])) for one in shares)
    return max(1, min(fitting, _CPU_ROWS) if device.type == "cpu" else fitting)


def _reserved(layout: DeviceLayout, device: torch.device) -> int:
    """Bytes to leave free on the device for offloaded weights while they compute there."""
    return layout.moved if device == layout.main else 0
