"""A loaded model whose units (placement.py) lie on several devices, made ready to compute.

Inputs follow the units: what enters one is moved to where it computes, by hooks of accelerate. The weights
of lodgers stay in the machine's memory and are on the main GPU for the time of their work only, one unit at
a time. Results go back to where the inputs came from, but a layer's, which the next one takes.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, cast

import torch
from accelerate.hooks import AlignDevicesHook
from accelerate.utils import find_device, send_to_device, set_module_tensor_to_device
from torch import nn

from ..checkpoints.quantize import decoder_name
from ..device import module_bytes
from ..model.context import DeviceLayout
from ..model.decoder import Decoder
from .device_map import units
from .layout import DevicePlacement


class UnitHook(AlignDevicesHook):
    """accelerate's hook for a whole unit. It brings weights without emptying the allocator's cache after
    each, which on CUDA waits for the device and then asks the driver for the same memory again."""

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if self.io_same_device:
            self.input_device = find_device([args, kwargs])
        if self.offload:
            self.tied_pointers_to_remove = set()  # what the inherited `post_forward` reads
            for name, weight in cast(dict, self.weights_map).items():
                set_module_tensor_to_device(
                    module, name, cast(Any, self.execution_device), value=weight, clear_cache=False
                )
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)


@contextmanager
def _current(device: torch.device) -> Iterator[None]:
    """Kernels of Triton start on the current GPU, wherever their tensors are."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


def attach_hooks(model: nn.Module, placement: DevicePlacement) -> None:
    """Make a model that was loaded to `placement` compute there; nothing changes where that is one device."""
    if not placement.uses_several_devices:
        return
    names, inside = units(model), decoder_name(model)
    decoder = cast(Decoder, model.get_submodule(inside))
    layers = [f"{inside}.layers.{number}" for number in range(len(decoder.layers))]
    moved = max((module_bytes(model.get_submodule(name)) for name in placement.offloaded), default=0)
    away = any(placement.execution_device(name) != placement.main for name in layers)
    for name in names:
        hands_on = name in layers
        reached = away and (hands_on or name == f"{inside}.norm")  # by what may come from another device
        if name in placement.offloaded or placement.execution_device(name) != placement.main or reached:
            _attach(
                model.get_submodule(name),
                placement.execution_device(name),
                name in placement.offloaded,
                not hands_on,
            )
    decoder.layout = DeviceLayout(
        placement.main, tuple(placement.execution_device(name) for name in layers), moved
    )


def _attach(module: nn.Module, device: torch.device, lodges: bool, returns: bool) -> None:
    """Put the hook around every method by which the unit is used."""
    hook = UnitHook(
        device, offload=lodges, io_same_device=returns, offload_buffers=True, place_submodules=True
    )
    hook.init_hook(module)
    lock = threading.RLock()
    for entrance in getattr(module, "entrances", ("forward",)):
        setattr(module, entrance, _around(module, hook, getattr(module, entrance), device, lock))


def _around(
    module: nn.Module, hook: UnitHook, work: Callable[..., Any], device: torch.device, lock: Any
) -> Callable[..., Any]:
    @wraps(work)
    def run(*args: Any, **kwargs: Any) -> Any:
        # A server prepares prompts beside the engine's thread: neither may send away what the other uses.
        with lock, _current(device):
            output = None
            try:
                args, kwargs = hook.pre_forward(module, *args, **kwargs)
                output = work(*args, **kwargs)
            finally:
                output = hook.post_forward(module, output)
            return output

    return run
