"""Hooks for a model whose units (`layout.py`) lie on several devices.

accelerate's hooks move a unit's inputs to the device where it computes. The weights of an offloaded unit stay
in CPU memory and are on the main GPU during its calls only, one unit at a time. Results go back to the device
of the inputs, except those of the decoder's layers, which the next layer moves itself.
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
    """accelerate's hook for a whole unit, which loads weights without emptying the allocator's cache.

    Emptying it after each weight would synchronize and then request the same memory from the driver again.
    """

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
    """Make a GPU the current device: Triton launches kernels there, wherever the tensors are."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


def attach_hooks(model: nn.Module, placement: DevicePlacement) -> None:
    """Attach the hooks to a model that was loaded to a `placement` on several devices."""
    path = decoder_name(model)
    decoder = cast(Decoder, model.get_submodule(path))
    layers = [f"{path}.layers.{number}" for number in range(len(decoder.layers))]
    execution = {name: placement.execution_device(name) for name in units(model)}
    moved = max((module_bytes(model.get_submodule(name)) for name in placement.offloaded), default=0)
    several = any(execution[name] != placement.main for name in layers)
    for name, device in execution.items():
        offload = name in placement.offloaded
        # A layer's results stay on its device, so the next layer or the norm may have to move them.
        mixed_inputs = several and (name in layers or name == f"{path}.norm")
        if offload or device != placement.main or mixed_inputs:
            _attach(model.get_submodule(name), device, offload, returns=name not in layers)
    decoder.layout = DeviceLayout(placement.main, tuple(execution[name] for name in layers), moved)


def _attach(module: nn.Module, device: torch.device, offload: bool, returns: bool) -> None:
    """Wrap every public entry method of a unit (its `entry_methods`, by default `forward`) in a hook.

    With `returns`, results are moved back to the device of the inputs.
    """
    hook = UnitHook(
        device, offload=offload, io_same_device=returns, offload_buffers=True, place_submodules=True
    )
    hook.init_hook(module)
    lock = threading.RLock()
    for name in getattr(module, "entry_methods", ("forward",)):
        setattr(module, name, _hooked(module, hook, getattr(module, name), device, lock))


def _hooked(
    module: nn.Module, hook: UnitHook, method: Callable[..., Any], device: torch.device, lock: Any
) -> Callable[..., Any]:
    @wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        # A server prepares prompts while the scheduler's thread runs: neither may move weights in use.
        with lock, _current(device):
            output = None
            try:
                args, kwargs = hook.pre_forward(module, *args, **kwargs)
                output = method(*args, **kwargs)
            finally:
                output = hook.post_forward(module, output)
            return output

    return run
