"""Programmatic dependent launch (PDL, Hopper and later): a kernel starts up and loads weights while the
kernel before it in the stream still runs.

Every kernel here waits (`gdc_wait`) before it writes anything, and before it reads anything other than
weights and data older than the current step. All earlier kernels have finished by then, so reused memory is
safe to overwrite. A kernel may trigger the launch of the next one before its own wait, since that one waits
too.
"""

# Triton kernels are not what their Python types say:
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportOptionalCall=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # a Triton without PDL: kernels run one after the other
    gdc_launch_dependents = gdc_wait = None

__all__ = [
    "ENABLED",
    "gdc_launch_dependents",
    "gdc_wait",
    "pdl_options",
    "prefetch_l2",
    "prefetch_options",
    "trigger_then_wait",
    "wait_then_trigger",
]

ENABLED = True
"""Whether kernels are launched with PDL on devices that support it."""
_CACHE_LINE = 128  # bytes


def pdl_options(x: Tensor) -> dict[str, Any]:
    """Launch options for PDL, for kernels on the device of `x`."""
    use_pdl = ENABLED and gdc_wait is not None and x.device.type == "cuda"
    use_pdl = use_pdl and torch.cuda.get_device_capability(x.device)[0] >= 9
    return {"PDL": True, "launch_pdl": True} if use_pdl else {"PDL": False}


def prefetch_options(weight: Tensor, max_bytes: int) -> dict[str, int]:
    """Arguments of `prefetch_l2`: `LINES` cache lines, `STEP` numbers apart, of each row of a weight, up to
    `max_bytes`."""
    count = triton.cdiv(min(weight.shape[-1] * weight.itemsize, max_bytes), _CACHE_LINE)
    return {"LINES": triton.next_power_of_2(count) if count else 0, "STEP": _CACHE_LINE // weight.itemsize}


@triton.jit
def trigger_then_wait(PDL: tl.constexpr):
    """Let the next kernel start up, then wait until the results of earlier kernels are visible."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def wait_then_trigger(PDL: tl.constexpr):
    """Wait until the results of earlier kernels are visible, then let the next kernel start up."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def prefetch_l2(weight, rows, stride, COLUMNS: tl.constexpr, LINES: tl.constexpr, STEP: tl.constexpr):
    """Prefetch the start of weight rows, `stride` numbers apart, into the L2 cache."""
    if LINES > 0:
        columns = tl.minimum(tl.arange(0, LINES) * STEP, COLUMNS - 1)
        addresses = weight + rows[:, None] * stride + columns[None, :]
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [addresses.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
