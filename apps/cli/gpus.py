"""How many GPUs a model takes, for `bifrons info`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ...blocks.placement.layout import longest_prefix, units
from ...blocks.placement.memory_estimate import tensor_bytes

SIZES = {"80 GB": 80 * 10**9, "141 GB": 141 * 10**9}
"""Memory of usual GPUs: A100 and H100, H200."""
_USABLE = 0.9
"""Share of a GPU's memory that weights, cache and activations may take."""


def count_gpus(
    model: nn.Module, beside: int, kinds: Mapping[str, str | None], keep_float32: Callable[[str], bool]
) -> dict[str, dict[str, int | None]]:
    """GPUs of each size that a plain model takes with its weights in each of the `kinds`, by name, with
    `beside` bytes on each. GPUs are filled one after the other; None where a part of the model is too large
    for one."""
    parts = dict.fromkeys(units(model), 0)
    counts: dict[str, dict[str, int | None]] = {name: {} for name in SIZES}
    for label, kind in kinds.items():
        sizes = dict.fromkeys(parts, 0)
        for name, size in tensor_bytes(model, torch.bfloat16, kind, keep_float32).items():
            if (unit := longest_prefix(name, sizes)) is not None:
                sizes[unit] += size
        for name, memory in SIZES.items():
            counts[name][label] = _filled(list(sizes.values()), int(memory * _USABLE) - beside)
    return counts


def _filled(sizes: list[int], memory: int) -> int | None:
    gpus, left = 1, memory
    for size in sizes:
        if size > memory:
            return None
        if size > left:
            gpus, left = gpus + 1, memory
        left -= size
    return gpus


def gpu_lines(counts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The counts as lines, where one GPU is too small for some kind of weights."""
    kinds = list(next(iter(counts.values())))
    if all(count == 1 for one in counts.values() for count in one.values()):
        return
    yield f"\nGPUs needed, with a conversation beside the weights{'':<3}" + "".join(
        f"{kind:>10}" for kind in kinds
    )
    for name, one in counts.items():
        yield f"  {'of ' + name:<48}" + "".join(f"{one[kind] or 'none':>10}" for kind in kinds)
