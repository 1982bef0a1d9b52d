"""Whether Triton kernels can serve a call. The modules that hold them need Triton and are imported late."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_CAPABILITY = (8, 0)  # of GPUs that multiply matrices of bfloat16
_FLOAT8_CAPABILITY = (8, 9)


@cache
def device_serves(device: torch.device) -> bool:
    """Whether kernels run there: on NVIDIA GPUs from Ampere on, where Triton is installed."""
    if device.type != "cuda" or torch.version.hip is not None or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= _CAPABILITY


@cache
def reads_float8(device: torch.device) -> bool:
    """Whether kernels there read float8_e4m3fn: Triton compiles that for Ada, Hopper and later alone."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FLOAT8_CAPABILITY


def serves(x: Tensor, *weights: Tensor) -> bool:
    """Whether kernels without gradients may take `x` through `weights`. Where torch compiles, it fuses the
    plain functions itself."""
    if torch.compiler.is_compiling():
        return False
    if x.dtype not in DTYPES or not device_serves(x.device) or not x.numel():
        return False
    if any(weight.dtype == torch.float8_e4m3fn for weight in weights) and not reads_float8(x.device):
        return False
    if torch.is_grad_enabled() and (x.requires_grad or any(weight.requires_grad for weight in weights)):
        return False
    return not torch.is_autocast_enabled(x.device.type)
