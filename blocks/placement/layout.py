"""The device on which each part of a model is stored, and the one on which it computes.

A unit is a part of a model that is never split over devices: a layer of the decoder, an embedding, a norm, a
head, a vision tower, the image tokenizer. A unit that is stored on the CPU of a machine with a GPU in use is
offloaded: its weights are copied to the main GPU for each of its calls (`offload.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..checkpoints.quantize import decoder_name
from ..device import resolve_device
from ..errors import OptionError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class DevicePlacement:
    """The device of every unit. `main` takes the inputs and computes the `offloaded` units; it also holds
    parameters outside of units (VL2's two separators)."""

    main: torch.device
    devices: Mapping[str, torch.device]
    offloaded: frozenset[str] = frozenset()

    def device_of(self, name: str) -> torch.device:
        """The device that stores a unit or a parameter, by its name."""
        unit = longest_prefix(name, self.devices)
        return self.main if unit is None else self.devices[unit]

    def execution_device(self, unit: str) -> torch.device:
        """The device where a unit computes."""
        return self.main if unit in self.offloaded else self.devices[unit]

    def peak_bytes(self, sizes: Mapping[str, int]) -> dict[torch.device, int]:
        """Peak memory on each device for units of these sizes: those stored there and, on the main device,
        the largest offloaded one."""
        used = dict.fromkeys((self.main, *self.devices.values()), 0)
        for unit, size in sizes.items():
            used[self.devices[unit]] += size
        used[self.main] += max((sizes[unit] for unit in self.offloaded), default=0)
        return used

    @property
    def uses_several_devices(self) -> bool:
        return bool(self.offloaded) or any(device != self.main for device in self.devices.values())

    def __str__(self) -> str:
        used = [str(self.main), *(str(device) for device in self.devices.values())]
        return " and ".join(dict.fromkeys(used))


def offloaded_units(devices: Mapping[str, torch.device], main: torch.device) -> frozenset[str]:
    """The units that are moved to `main` to compute: those on the CPU, if `main` is another device."""
    return frozenset(name for name, device in devices.items() if device == CPU and main != CPU)


def containers(model: nn.Module) -> list[str]:
    """Names of the modules that may be split: the decoder, its list of layers, and the modules around it."""
    parts = decoder_name(model).split(".")
    return ["", *(".".join(parts[: count + 1]) for count in range(len(parts))), ".".join([*parts, "layers"])]


def units(model: nn.Module) -> list[str]:
    """Names of the units. Those that run once per image come last, so that they are offloaded first."""
    split, names = containers(model), []

    def visit(path: str, module: nn.Module) -> None:
        for leaf, child in module.named_children():
            name = f"{path}.{leaf}" if path else leaf
            if name in split:
                visit(name, child)
            elif any(True for _ in child.parameters()):
                names.append(name)

    visit("", model)
    per_image = getattr(model, "per_image_modules", ())
    return sorted(names, key=lambda name: name in per_image)


def longest_prefix(name: str, prefixes: Mapping[str, Any]) -> str | None:
    """The longest of the `prefixes`, in whole dotted parts, of `name`; None if there is none."""
    parts = name.split(".")
    for count in range(len(parts), -1, -1):
        prefix = ".".join(parts[:count])
        if prefix in prefixes:
            return prefix
    return None


def parse_device(device: Any, what: str) -> torch.device:
    """The device for a GPU's number or a device name; a CUDA device always has an index.

    Raises an `OptionError` that begins with `what`.
    """
    gpus = "".join(f", {number}" for number in range(torch.cuda.device_count()))
    accepted = f"accepted: cpu{', mps' if torch.backends.mps.is_available() else ''}{gpus}"
    if device == "disk":
        raise OptionError(f"{what} is 'disk', but weights are not offloaded to files; {accepted}")
    if isinstance(device, str) and device.isdecimal():
        device = int(device)
    if isinstance(device, bool) or not isinstance(device, int | str | torch.device):
        raise OptionError(f"{what} is {device!r}; {accepted}")
    try:
        resolved = resolve_device(f"cuda:{device}" if isinstance(device, int) else device)
    except OptionError as error:
        raise OptionError(f"{what} is {device!r}: {error}; {accepted}") from error
    if resolved.type == "meta":
        raise OptionError(f"{what} is 'meta', which holds no numbers; {accepted}")
    return torch.device("cuda", resolved.index or 0) if resolved.type == "cuda" else resolved
