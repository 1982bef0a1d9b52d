"""What fits: weights before they are loaded, and the items of a batch before they are computed."""

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

# Estimates of activations are rough, and an allocator loses some: a batch gets this part of what is free.
_USABLE = 0.8
_CPU_ROWS = 64  # beyond this a larger batch is no faster on a CPU


def size_text(count: int) -> str:
    """Bytes for people, in powers of 1000: `4.18 GB`."""
    if count < 1000:
        return f"{count} B"
    value, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def _never(name: str) -> bool:
    return False


def check_weights(
    name: str,
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    kind: str | None,
    keep_float32: Callable[[str], bool] = _never,
    instead: str = "",
) -> None:
    """An `OptionError` where the weights of `model` (plain, on meta) in `dtype`, quantized as `kind`, exceed
    the free memory of the device; it says in which form they would fit, and what else is accepted `instead`.
    Also where the device has no such numbers.
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
    told = ", ".join(f"{size_text(size)} {text}" for text, size in sizes if size < needed)
    stated = form_text(dtype, kind)
    raise OptionError(
        f"{name} needs {size_text(needed)} for its weights as {stated} on {device}, where {size_text(free)} "
        f"are free; accepted: what fits{f' ({told})' if told else ''}{instead}"
    )


def form_text(dtype: torch.dtype, kind: str | None) -> str:
    """`bfloat16 with int8 weights`."""
    return str(dtype).removeprefix("torch.") + (f" with {kind} weights" if kind else "")


def batch_that_fits(work: Workload, device: torch.device, dtype: torch.dtype, kept: int = 0) -> int:
    """How many items of that work to compute at once, by the memory that is free now; at least one. `kept`
    bytes more will be free when it begins."""
    budget = int((free_bytes(device) + kept) * _USABLE)
    once = max(0, work.activation_bytes(0, dtype))
    each = work.cache_bytes(1, dtype)
    fitting = min(
        (budget - once) // max(each, 1),
        budget // (each + max(work.activations * dtype.itemsize, work.sampling * torch.float32.itemsize)),
    )
    return max(1, min(fitting, _CPU_ROWS) if device.type == "cpu" else fitting)


def batch_over_devices(work: Workload, layout: DeviceLayout, dtype: torch.dtype) -> int:
    """`batch_that_fits` of a model that is spread over devices: each holds the caches of its layers, and the
    main one leaves room for the weights that move there."""
    fitting = []
    for device in dict.fromkeys([layout.main, *layout.layers]):
        cache = -(-work.cache * layout.layers.count(device) // len(layout.layers))
        moved = layout.moved if device == layout.main else 0
        fitting.append(batch_that_fits(replace(work, cache=cache), device, dtype, -moved))
    return min(fitting)


def rows_that_fit(bytes_per_row: int, device: torch.device, layout: DeviceLayout | None = None) -> int:
    """Number of rows of that size to compute at once, at least one.

    With a `layout`, each of its devices holds the share of a row that belongs to its layers.
    """
    fitting = max(1, int(free_bytes(device) * _USABLE) // bytes_per_row)
    if layout is not None:
        shares = {one: layout.layers.count(one) / len(layout.layers) for one in layout.layers}
        free = {one: free_bytes(one) - (layout.moved if one == layout.main else 0) for one in shares}
        fitting = max(1, min(int(free[one] * _USABLE / (bytes_per_row * shares[one])) for one in shares))
    return min(fitting, _CPU_ROWS) if device.type == "cpu" else fitting
