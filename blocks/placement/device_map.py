"""Where a model's weights go: to one device, or by a device map over GPUs and the machine's memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..checkpoints.quantize import check_device, decoder_name, keep_no_float32
from ..device import check_capture, free_bytes, resolve_device, resolve_dtype
from ..errors import OptionError
from .auto_device_map import MaxMemory, available_memory, infer_placement, parse_max_memory
from .layout import CPU, DevicePlacement, containers, longest_prefix, offloaded_units, parse_device, units
from .memory_budget import check_weights, form_text, size_text
from .memory_estimate import tensor_bytes
from .tensor_parallel import check_ranks

DeviceMap = str | Mapping[str, Any]
"""`auto`, `balanced`, or names of modules with their devices."""

_POLICIES = ("auto", "balanced")
_ACCEPTED = "auto, balanced, or modules with their devices, such as {'': 0, 'module': 'cpu'}; never the disk"
_INSTEAD = ', or device_map="auto" (--device-map auto): over all GPUs and the memory of the machine'


@dataclass(frozen=True)
class LoadOptions:
    """Where and how weights are loaded.

    device: None takes CUDA, else MPS, else the CPU.
    dtype: None takes bfloat16 on a GPU (float16 on one without it) and float32 on the CPU.
    quantize: `int8`, `int4` or `fp8` quantizes the decoder's weights, experts included, as they are read. A
        folder of quantized weights is loaded as it is. Weights in DeepSeek-V3's blocks of fp8 are dequantized
        with None, and stay as they are with `fp8`.
    device_map: spreads the weights over devices. `auto` fills one GPU after the other and leaves the rest in
        CPU memory, from where each layer is moved to a GPU to compute; `balanced` fills all GPUs equally; a
        dict places modules: `{"": 0, "vision": "cpu"}`.
    max_memory: what weights may take per device, with `auto` or `balanced`: `{0: "20GiB", "cpu": "60GiB"}`.
        By default 0.8 of each GPU's free memory and all of the CPU's.
    capture: on CUDA, None captures decode steps as graphs, once per number of rows, and prompts and images of
        recurring sizes; False launches each operation, which is slower but needs no preparation. Models on
        several devices are never captured.
    tensor_parallel: divide every decoder layer among this many processes, one a GPU (`tensor_parallel.py`);
        on the CPU, too. None and 1 are one process.
    progress: show a bar on stderr if loading takes more than half a second; None for terminals and notebooks
        only.
    """

    device: str | torch.device | None = None
    dtype: str | torch.dtype | None = None
    quantize: str | None = None
    device_map: DeviceMap | None = None
    max_memory: MaxMemory | None = None
    capture: bool | None = None
    progress: bool | None = None
    tensor_parallel: int | None = None

    @property
    def ranks(self) -> int:
        """The number of processes that hold the model."""
        return self.tensor_parallel or 1


def choose_placement(
    name: str,
    model: nn.Module,
    options: LoadOptions,
    kind: str | None,
    keep_float32: Callable[[str], bool] = keep_no_float32,
) -> tuple[DevicePlacement, torch.dtype]:
    """The placement and the dtype for loading a plain model, on meta, with weights quantized to `kind`.

    Raises `OptionError` for options that are not accepted and for weights that exceed the free memory; `name`
    is the model's name in messages.
    """
    _check_options(options)
    if options.device_map is None:
        main = resolve_device(options.device)
        if options.ranks > 1:
            check_ranks(options.ranks, main)
            if kind is not None:
                raise OptionError(
                    f"tensor_parallel can't divide {kind} weights; accepted: bfloat16, float16, float32"
                )
        check_capture(options.capture, main)
        dtype = resolve_dtype(options.dtype, main)
        check_weights(name, model, main, dtype, kind, keep_float32, _INSTEAD)
        return DevicePlacement(main, dict.fromkeys(units(model), main)), dtype
    if isinstance(options.device_map, str):
        limits = options.max_memory
        memory = available_memory() if limits is None else parse_max_memory(limits)
        dtype = resolve_dtype(options.dtype, next(iter(memory)))
        sizes = unit_bytes(model, dtype, kind, keep_float32)
        balanced = options.device_map == "balanced"
        placement = infer_placement(f"{name} as {form_text(dtype, kind)}", sizes, memory, balanced)
    else:
        placement = parse_device_map(model, options.device_map)
        dtype = resolve_dtype(options.dtype, placement.main)
        sizes = unit_bytes(model, dtype, kind, keep_float32)
    if options.capture and placement.uses_several_devices:
        raise OptionError(
            f"capture is True, but the model is spread over {placement}; accepted: False or None"
        )
    check_capture(options.capture, placement.main)
    for device, needed in placement.peak_bytes(sizes).items():
        check_device(kind, device)
        if needed > (free := free_bytes(device)):
            raise OptionError(
                f"{name} as {form_text(dtype, kind)} would take {size_text(needed)} of {device}, where "
                f"{size_text(free)} are free; accepted: a device_map, or a max_memory, that fits"
            )
    return placement, dtype


def _check_options(options: LoadOptions) -> None:
    """Raise `OptionError` for options that exclude each other and for an invalid `device_map`."""
    device_map = options.device_map
    if options.ranks > 1 and device_map is not None:
        raise OptionError("device_map and tensor_parallel exclude each other; accepted: one of them")
    if device_map is None:
        if options.max_memory is not None:
            raise OptionError("max_memory has no device_map; accepted: with device_map='auto' or 'balanced'")
        return
    if options.device is not None:
        raise OptionError(
            f"device is {str(options.device)!r} and there is a device_map too; accepted: one of them"
        )
    valid = device_map in _POLICIES if isinstance(device_map, str) else isinstance(device_map, Mapping)
    if not valid:
        raise OptionError(f"device_map is {device_map!r}; accepted: {_ACCEPTED}")
    if options.max_memory is not None and not isinstance(device_map, str):
        raise OptionError(
            "max_memory comes with a device_map of modules; accepted: with 'auto' or 'balanced'"
        )


def unit_bytes(
    model: nn.Module, dtype: torch.dtype, kind: str | None, keep_float32: Callable[[str], bool]
) -> dict[str, int]:
    """Bytes of each unit's weights when loaded in `dtype` and quantized to `kind`."""
    sizes = dict.fromkeys(units(model), 0)
    for name, size in tensor_bytes(model, dtype, kind, keep_float32).items():
        unit = longest_prefix(name, sizes)
        if unit is not None:
            sizes[unit] += size
    return sizes


def parse_device_map(model: nn.Module, device_map: Mapping[str, Any]) -> DevicePlacement:
    """The placement for a map from names of units, or of modules that contain units, to devices.

    The longest matching name decides. Raises `OptionError`.
    """
    names = units(model)
    known = {*containers(model), *names}
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
    devices = {name: given[longest_prefix(name, given) or ""] for name in names}
    first = devices[f"{decoder_name(model)}.embed_tokens"]
    main = first if first != CPU else next((device for device in devices.values() if device != CPU), CPU)
    return DevicePlacement(main, devices, offloaded_units(devices, main))
