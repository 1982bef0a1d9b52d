"""Where the weights of a model lie: the homes of its units.

A unit is what is never split: a layer of the decoder, an embedding, a norm, a head, a tower, the image
tokenizer. Each has a home. A unit at home on the CPU beside a GPU is a lodger: its weights move to the `main`
GPU for the time of its work (spreading.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..device import resolve_device
from ..errors import OptionError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class DevicePlacement:
    """`main` takes inputs and computes what lodges; `homes` are the units' own devices. What belongs to no
    unit (VL2's two separators) lies on `main`."""

    main: torch.device
    devices: Mapping[str, torch.device]
    offloaded: frozenset[str] = frozenset()

    def device_of(self, name: str) -> torch.device:
        """Where a parameter lies, by its name or its unit's."""
        unit = longest_prefix(name, self.devices)
        return self.main if unit is None else self.devices[unit]

    def execution_device(self, unit: str) -> torch.device:
        """Where a unit computes."""
        return self.main if unit in self.offloaded else self.devices[unit]

    def peak_bytes(self, sizes: Mapping[str, int]) -> dict[torch.device, int]:
        """What units of these sizes take of each device at most: those at home, and the largest lodger."""
        used = dict.fromkeys((self.main, *self.devices.values()), 0)
        for unit, size in sizes.items():
            used[self.devices[unit]] += size
        used[self.main] += max((sizes[unit] for unit in self.offloaded), default=0)
        return used

    @property
    def uses_several_devices(self) -> bool:
        return bool(self.offloaded) or any(home != self.main for home in self.devices.values())

    def __str__(self) -> str:
        used = [str(self.main), *(str(home) for home in self.devices.values())]
        return " and ".join(dict.fromkeys(used))


def offloaded_units(homes: Mapping[str, torch.device], main: torch.device) -> frozenset[str]:
    return frozenset(name for name, home in homes.items() if home == CPU and main != CPU)


def longest_prefix(name: str, prefixes: Mapping[str, Any]) -> str | None:
    """The longest of the `prefixes`, whole parts of names, that `name` begins with."""
    parts = name.split(".")
    for count in range(len(parts), -1, -1):
        prefix = ".".join(parts[:count])
        if prefix in prefixes:
            return prefix
    return None


def parse_device(device: Any, what: str) -> torch.device:
    """A GPU's number or a device's name, checked; GPUs come with their number."""
    gpus = torch.cuda.device_count()
    told = f"accepted: cpu{', mps' if torch.backends.mps.is_available() else ''}" + "".join(
        f", {number}" for number in range(gpus)
    )
    if device == "disk":
        raise OptionError(f"{what} is 'disk', but weights are not offloaded to files; {told}")
    if isinstance(device, str) and device.isdecimal():
        device = int(device)
    if isinstance(device, bool) or not isinstance(device, int | str | torch.device):
        raise OptionError(f"{what} is {device!r}; {told}")
    try:
        found = resolve_device(f"cuda:{device}" if isinstance(device, int) else device)
    except OptionError as error:
        raise OptionError(f"{what} is {device!r}: {error}; {told}") from error
    if found.type == "meta":
        raise OptionError(f"{what} is 'meta', which holds no numbers; {told}")
    return torch.device("cuda", found.index or 0) if found.type == "cuda" else found
