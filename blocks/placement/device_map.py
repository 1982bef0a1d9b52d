"""Where the weights of a model go: all to one device, or spread over GPUs and the memory of the machine."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..checkpoints.quantize import check_device, decoder_name, tensor_bytes
from ..device import check_capture, free_bytes, resolve_device, resolve_dtype
from ..errors import OptionError
from .auto_device_map import MaxMemory, available_memory, infer_placement, parse_max_memory
from .layout import CPU, DevicePlacement, longest_prefix, offloaded_units, parse_device
from .memory_budget import check_weights, form_text, size_text

DeviceMap = str | Mapping[str, Any]
"""`auto`, `balanced`, or names of modules with their devices."""
_POLICIES = ("auto", "balanced")
_ACCEPTED = "auto, balanced, or modules with their devices, such as {'': 0, 'module': 'cpu'}; never the disk"
_INSTEAD = ', or device_map="auto" (--device-map auto): over all GPUs and the memory of the machine'


def _never(name: str) -> bool:
    return False


def choose_placement(
    name: str,
    model: nn.Module,
    *,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    capture: bool | None,
    kind: str | None,
    keep_float32: Callable[[str], bool] = _never,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
) -> tuple[DevicePlacement, torch.dtype]:
    """The placement and the dtype of a model (plain, on meta) that is to be loaded, quantized as `kind`.

    Raises `OptionError`, before anything is loaded, for what is not accepted and for what does not fit.
    """
    if device_map is None:
        if max_memory is not None:
            raise OptionError("max_memory has no device_map; accepted: with device_map='auto' or 'balanced'")
        main = resolve_device(device)
        check_capture(capture, main)
        chosen = resolve_dtype(dtype, main)
        check_weights(name, model, main, chosen, kind, keep_float32, _INSTEAD)
        return DevicePlacement(main, dict.fromkeys(units(model), main)), chosen
    if device is not None:
        raise OptionError(f"device is {str(device)!r} and there is a device_map too; accepted: one of them")
    if not isinstance(device_map, str | Mapping):
        raise OptionError(f"device_map is {device_map!r}; accepted: {_ACCEPTED}")
    if isinstance(device_map, str):
        if device_map not in _POLICIES:
            raise OptionError(f"device_map is {device_map!r}; accepted: {_ACCEPTED}")
        memory = available_memory() if max_memory is None else parse_max_memory(max_memory)
        chosen = resolve_dtype(dtype, next(iter(memory)))
        sizes = unit_bytes(model, chosen, kind, keep_float32)
        stated = f"{name} as {form_text(chosen, kind)}"
        placement = infer_placement(stated, sizes, memory, device_map == "balanced")
    else:
        if max_memory is not None:
            raise OptionError(
                "max_memory comes with a device_map of modules; accepted: with 'auto' or 'balanced'"
            )
        placement = parse_device_map(model, device_map)
        chosen = resolve_dtype(dtype, placement.main)
        sizes = unit_bytes(model, chosen, kind, keep_float32)
    if capture and placement.uses_several_devices:
        raise OptionError(
            f"capture is True, but the model is spread over {placement}; accepted: False or None"
        )
    check_capture(capture, placement.main)
    for one, needed in placement.peak_bytes(sizes).items():
        check_device(kind, one)
        if needed > (free := free_bytes(one)):
            raise OptionError(
                f"{name} as {form_text(chosen, kind)} would take {size_text(needed)} of {one}, where "
                f"{size_text(free)} are free; accepted: a device_map, or a max_memory, that fits"
            )
    return placement, chosen


def _containers(model: nn.Module) -> list[str]:
    """Names of the modules that may be split: those that hold the decoder, itself, and its list of layers."""
    parts = decoder_name(model).split(".")
    return ["", *(".".join(parts[: count + 1]) for count in range(len(parts))), ".".join([*parts, "layers"])]


def units(model: nn.Module) -> list[str]:
    """Names of the units: first those that work at every token, which so get the first device."""
    containers, found = _containers(model), []

    def visit(path: str, module: nn.Module) -> None:
        for leaf, child in module.named_children():
            name = f"{path}.{leaf}" if path else leaf
            if name in containers:
                visit(name, child)
            elif any(True for _ in child.parameters()):
                found.append(name)

    visit("", model)
    late = getattr(model, "per_image_modules", ())
    return sorted(found, key=lambda name: name in late)


def unit_bytes(
    model: nn.Module, dtype: torch.dtype, kind: str | None, keep_float32: Callable[[str], bool] = _never
) -> dict[str, int]:
    """What the weights of each unit will take."""
    sizes = dict.fromkeys(units(model), 0)
    for name, size in tensor_bytes(model, dtype, kind, keep_float32).items():
        unit = longest_prefix(name, sizes)
        if unit is not None:
            sizes[unit] += size
    return sizes


def parse_device_map(model: nn.Module, device_map: Mapping[str, Any]) -> DevicePlacement:
    """A map that names modules: units, or what holds some of them; the longest name counts."""
    names, known = units(model), {*_containers(model), *units(model)}
    given: dict[str, torch.device] = {}
    for name, device in device_map.items():
        if name not in known:
            shown = ", ".join(n for n in sorted(known) if n and not n.rpartition(".")[2].isdecimal())
            raise OptionError(
                f"device_map names {name!r}; accepted: '' for everything, {shown}, and each of the layers"
            )
        given[name] = parse_device(device, f"the device of {name!r}")
    missing = [name for name in names if longest_prefix(name, given) is None]
    if missing:
        more = ", ..." if len(missing) > 4 else ""
        raise OptionError(
            f"device_map has no place for {', '.join(missing[:4])}{more} ({len(missing)} of {len(names)} "
            "modules); accepted: a map that covers all, such as one with '' for the rest"
        )
    homes = {name: given[longest_prefix(name, given) or ""] for name in names}
    first = homes[f"{decoder_name(model)}.embed_tokens"]
    main = first if first != CPU else next((home for home in homes.values() if home != CPU), CPU)
    return DevicePlacement(main, homes, offloaded_units(homes, main))
