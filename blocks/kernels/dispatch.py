"""Decides whether Triton kernels can be used for a call. Modules with kernels import Triton, so they are
imported only after a check here."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_CAPABILITY = (8, 0)  # compute capability with bfloat16 matrix products
_FLOAT8_CAPABILITY = (8, 9)


@cache
def device_has_kernels(device: torch.device) -> bool:
    """Whether kernels run on the device: an NVIDIA GPU, Ampere or later, with Triton installed."""
    if device.type != "cuda" or torch.version.hip is not None or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= _CAPABILITY


@cache
def supports_float8(device: torch.device) -> bool:
    """Whether kernels on the device can read float8_e4m3fn: Triton needs Ada, Hopper or later for it."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FLOAT8_CAPABILITY


def can_use_kernels(x: Tensor, *weights: Tensor) -> bool:
    """Whether kernels, which have no backward pass, can compute on `x` with these weights.

    They are not used under `torch.compile`, which fuses the plain functions itself, nor under autocast.
    """
    if torch.compiler.is_compiling():
        return False
    if x.dtype not in DTYPES or not device_has_kernels(x.device) or not x.numel():
        return False
    if any(weight.dtype == torch.float8_e4m3fn for weight in weights) and not supports_float8(x.device):
        return False
    if torch.is_grad_enabled() and (x.requires_grad or any(weight.requires_grad for weight in weights)):
        return False
    return not torch.is_autocast_enabled(x.device.type)
