"""Kernels that overlap: each is set up, and loads weights, while the one before it runs (programmatic
dependent launch, from Hopper on).

A kernel waits for the end of the one before it ahead of all that it writes, and of all that it reads but
weights and what is older than the step; so all that came before has ended by then, and memory that was given
back may be written. The next kernel may be let in earlier: it waits for this one's end itself.
"""

# What Triton compiles is not what its Python types say:
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportOptionalCall=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # a Triton without launches that overlap: kernels come one after the other
    gdc_launch_dependents = gdc_wait = None

__all__ = ["OVERLAP", "ask_ahead", "gdc_launch_dependents", "gdc_wait", "launching", "let_in", "lines"]

OVERLAP = True
"""Whether kernels overlap where they can."""
_LINE = 128  # bytes that the device's cache reads at once


def launching(x: Tensor) -> dict[str, Any]:
    """What kernels on this tensor's device are launched with: whether they overlap."""
    early = OVERLAP and gdc_wait is not None and x.device.type == "cuda"
    early = early and torch.cuda.get_device_capability(x.device)[0] >= 9
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}


def lines(weight: Tensor, most: int) -> dict[str, int]:
    """What `ask_ahead` asks for of each row of a weight: `LINES` of `STEP` numbers, up to `most` bytes."""
    count = triton.cdiv(min(weight.shape[-1] * weight.itemsize, most), _LINE)
    return {"LINES": triton.next_power_of_2(count) if count else 0, "STEP": _LINE // weight.itemsize}


@triton.jit
def let_in(EARLY: tl.constexpr):
    """The next kernel may be set up; what the kernels before this one made is there."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def ask_ahead(weight, rows, stride, COLUMNS: tl.constexpr, LINES: tl.constexpr, STEP: tl.constexpr):
    """Asks for the beginning of weight rows, `stride` numbers apart, into the device's cache."""
    if LINES > 0:
        columns = tl.minimum(tl.arange(0, LINES) * STEP, COLUMNS - 1)
        places = weight + rows[:, None] * stride + columns[None, :]
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [places.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
