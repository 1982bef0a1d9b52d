"""What fits in the free memory: weights before they are loaded, and batches before they are computed."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from ..checkpoints.quantize import check_device, model_bytes
from ..device import free_bytes
from ..errors import OptionError
from ..kernels.codec import KINDS
from ..model.context import DeviceLayout
from .memory_estimate import Workload

_USABLE = 0.8  # of the free memory: activations are estimated roughly, and an allocator loses some
_CPU_ROWS = 64  # beyond this a larger batch is no faster on a CPU


def size_text(count: int) -> str:
    """A number of bytes for people, in powers of 1000: `4.18 GB`."""
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
    """Refuse weights that exceed the free memory of a device, or that it has no dtype for.

    `model` is a plain one on meta, `kind` is how its weights will be quantized. The `OptionError` calls the
    model `name` and says in which form it would fit, and what else is accepted `instead`.
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
    raise OptionError(
        f"{name} needs {size_text(needed)} for its weights as {form_text(dtype, kind)} on {device}, where "
        f"{size_text(free)} are free; accepted: what fits{f' ({smaller})' if smaller else ''}{instead}"
    )


def form_text(dtype: torch.dtype, kind: str | None) -> str:
    """How weights are held, for messages: `bfloat16 with int8 weights`."""
    return str(dtype).removeprefix("torch.") + (f" with {kind} weights" if kind else "")


def batch_that_fits(work: Workload, device: torch.device, dtype: torch.dtype, reclaimable: int = 0) -> int:
    """Number of items of that work to compute at once in the memory that is free now, at least one.

    `reclaimable` bytes more will be free when it begins; a negative number is reserved.
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
    """`batch_that_fits` for a decoder over several devices. Each holds the caches of its layers, and the main
    one reserves room for offloaded weights."""
    fitting = []
    for device in dict.fromkeys([layout.main, *layout.layers]):
        cache = -(-work.cache * layout.layers.count(device) // len(layout.layers))
        share = replace(work, cache=cache)
        fitting.append(batch_that_fits(share, device, dtype, -_reserved(layout, device)))
    return min(fitting)


def rows_that_fit(bytes_per_row: int, device: torch.device, layout: DeviceLayout | None = None) -> int:
    """Number of rows of that size to compute at once, at least one.

    With a `layout`, each of its devices holds the share of a row that belongs to its layers.
    """
    fitting = int(free_bytes(device) * _USABLE) // bytes_per_row
    if layout is not None:
        shares = {one: layout.layers.count(one) / len(layout.layers) for one in layout.layers}
        free = {one: free_bytes(one) - _reserved(layout, one) for one in shares}
        fitting = min(int(free[one] * _USABLE / (bytes_per_row * shares[one])) for one in shares)
    return max(1, min(fitting, _CPU_ROWS) if device.type == "cpu" else fitting)


def _reserved(layout: DeviceLayout, device: torch.device) -> int:
    """Bytes to leave free on the device for offloaded weights that are moved there."""
    return layout.moved if device == layout.main else 0
