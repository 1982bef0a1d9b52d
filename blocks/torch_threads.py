"""How many of torch's threads compute on the CPU.

Threads that wait for each other spin by default (OpenMP's), so on a busy machine a small model, whose
products take microseconds, is many times slower with several threads than with one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SMALL_DECODER = 50_000_000
"""Number of weights below which a decoder on the CPU computes with one thread by default. One thread was
measured to be faster for janus-nano (13 million weights) on a busy machine, and as fast on an idle one
(docs/performance.md); the best limit was not measured.

A scheduler's thread has OpenMP threads of its own beside those of the thread that loaded the model. When
together they outnumber the cores, threads go to sleep some 270 times in a decoding step of janus-nano,
probably after each product.
"""

_default = torch.get_num_threads()
_chosen = False


def set_threads(count: int | None) -> None:
    """Let the whole process compute with `count` of torch's threads, whatever the model; None undoes that."""
    global _chosen
    _chosen = count is not None
    torch.set_num_threads(_default if count is None else count)


def is_small(decoder: nn.Module) -> bool:
    """Whether a decoder is on the CPU and has less than `SMALL_DECODER` weights."""
    weights = list(decoder.parameters())
    on_cpu = all(weight.device.type == "cpu" for weight in weights[:1])
    return on_cpu and sum(weight.numel() for weight in weights) < SMALL_DECODER


def suitable_threads(decoder: nn.Module) -> int | None:
    """The number of threads that suit a decoder: 1 for a small one.

    None is the process's number: for other decoders, and where the user has chosen, by OMP_NUM_THREADS,
    `set_threads`, or `torch.set_num_threads` after this module was imported.
    """
    if _chosen or "OMP_NUM_THREADS" in os.environ or torch.get_num_threads() != _default:
        return None
    return 1 if is_small(decoder) else None


def idle_cores(device: torch.device) -> int:
    """Number of workers that the cores allow, each of which uses `torch.get_num_threads()` threads."""
    if device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // torch.get_num_threads())


@contextmanager
def computing_threads(count: int | None) -> Iterator[None]:
    """Within it, the calling thread computes with `count` threads; None leaves their number."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
