"""Automatic placement of units on devices with limited memory, by accelerate, from the units' sizes."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from ..device import free_bytes
from ..errors import OptionError, ResourceError
from .layout import CPU, DevicePlacement, longest_prefix, offloaded_units, parse_device
from .memory_budget import size_text

MaxMemory = Mapping[Any, Any]
"""Memory that weights may take on each device (a GPU's number or `cpu`): bytes, or a size such as `20GiB`."""

_WEIGHTS_SHARE = 0.8  # of a GPU's free memory, by default; the rest is for caches and activations


def available_memory() -> dict[torch.device, int]:
    """Default memory for weights by device, in the order in which devices are filled."""
    gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    if not gpus and torch.backends.mps.is_available():
        gpus = [torch.device("mps")]
    memory = {gpu: int(free_bytes(gpu) * _WEIGHTS_SHARE) for gpu in gpus}
    if not any(gpu.type == "mps" for gpu in gpus):  # MPS shares the CPU's memory
        memory[CPU] = free_bytes(CPU)
    return memory


def parse_max_memory(max_memory: MaxMemory) -> dict[torch.device, int]:
    """The `max_memory` option as bytes by device, GPUs first. Raises `OptionError`."""
    from accelerate.utils.modeling import convert_file_size_to_int

    if not isinstance(max_memory, Mapping):
        raise OptionError(f"max_memory is {max_memory!r}; accepted: such as {{0: '20GiB', 'cpu': '60GiB'}}")
    limits: dict[torch.device, int] = {}
    for key, value in max_memory.items():
        device = parse_device(key, "a device of max_memory")
        try:
            if isinstance(value, bool) or not isinstance(value, int | str):
                raise ValueError(value)
            size = convert_file_size_to_int(value.strip() if isinstance(value, str) else value)
        except ValueError as error:
            raise OptionError(
                f"max_memory for {device} is {value!r}; accepted: bytes, or a size such as 20GiB or 500MB"
            ) from error
        if device in limits:
            raise OptionError(f"max_memory names {device} twice")
        limits[device] = size
    limits = {device: size for device, size in limits.items() if size}
    if not limits:
        raise OptionError("max_memory allows nothing; accepted: at least one device with some bytes")
    return dict(sorted(limits.items(), key=lambda item: (item[0] == CPU, item[0].index or 0)))


def infer_placement(
    name: str, sizes: Mapping[str, int], memory: Mapping[torch.device, int], balanced: bool = False
) -> DevicePlacement:
    """A placement of units of these sizes within `memory`, whose devices are filled in order.

    With `balanced`, GPUs get about equal shares. Units that exceed the GPUs' memory are offloaded to the CPU
    if `memory` has it. Raises `OptionError` if the units do not fit; `name` is the model's name in messages.
    """
    gpus, total, largest = [d for d in memory if d != CPU], sum(sizes.values()), max(sizes.values())
    first = next(iter(memory))
    if total <= memory[first] and not (balanced and len(gpus) > 1):
        return DevicePlacement(first, dict.fromkeys(sizes, first))
    # accelerate reserves room on the first GPU for offloaded units; first try a budget that makes up for it.
    for reserve in (False, True):
        budget = {gpu: memory[gpu] + (0 if reserve or gpu != first else largest) for gpu in gpus}
        devices = _infer(sizes, budget, balanced)
        # Offloaded units compute on the first GPU that has room for them.
        mains = gpus if CPU in devices.values() else [devices[next(iter(devices))]]
        for main in mains:
            placement = DevicePlacement(main, devices, offloaded_units(devices, main))
            if all(used <= memory.get(device, 0) for device, used in placement.peak_bytes(sizes).items()):
                return placement
    allowed = ", ".join(f"{size_text(size)} on {device}" for device, size in memory.items())
    room = f" beside {size_text(largest)} on a GPU for what moves there" if gpus and CPU in memory else ""
    raise ResourceError(
        f"{name} needs {size_text(total)} for its weights{room}, and these may take {allowed}; accepted: "
        "what fits there, such as a smaller dtype, quantized weights or more devices (the disk is not used)"
    )


def _infer(
    sizes: Mapping[str, int], budget: Mapping[torch.device, int], balanced: bool
) -> dict[str, torch.device]:
    """accelerate's device map; units that exceed the GPUs' budget are on the CPU."""
    from accelerate.utils.modeling import get_balanced_memory, infer_auto_device_map

    numbers: dict[Any, torch.device] = dict(enumerate(budget))
    limits: dict[Any, Any] = {number: budget[device] for number, device in numbers.items()}
    skeleton = _skeleton(sizes)
    if balanced and len(limits) > 1:
        limits = cast(dict, get_balanced_memory(skeleton, limits, no_split_module_classes=["_Unit"]))
    limits["cpu"] = 2 * sum(sizes.values()) + 1  # unlimited here; the caller checks what the CPU has
    inferred = infer_auto_device_map(skeleton, limits, no_split_module_classes=["_Unit"])
    return {unit: numbers.get(inferred[longest_prefix(unit, inferred) or ""], CPU) for unit in sizes}


class _Unit(nn.Module):
    """A stand-in for a unit of `size` bytes while a device map is inferred."""

    def __init__(self, size: int) -> None:
        super().__init__()
        weight = torch.empty(size, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)


def _skeleton(sizes: Mapping[str, int]) -> nn.Module:
    """A module tree of `_Unit`s with the names of `sizes`."""
    root = nn.Module()
    for name, size in sizes.items():
        path, _, leaf = name.rpartition(".")
        parent = root
        for part in path.split(".") if path else ():
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(leaf, _Unit(size))
    return root
