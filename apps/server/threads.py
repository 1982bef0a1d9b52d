"""How many threads torch computes with, in a server on the CPU."""

import os
from collections.abc import Iterable
from typing import Any

import torch

from ...blocks.engine.sampling_params import check_integer

SMALL = 50_000_000
"""Weights of a decoder below which a server on the CPU computes with one thread, unless told otherwise.
Measured is that janus-nano's 13 million are faster so; where the bound should be is not.

A scheduler computes on a thread of its own, whose OpenMP threads come on top of those of the thread that
loaded the model. Where both together outnumber the cores, threads were seen to sleep some 270 times in a step
of janus-nano, which fits OpenMP putting them to sleep at the end of each product; that cause is inferred. And
where they spin, it is at the cost of what prepares prompts and pictures beside the scheduler.
"""


def use_threads(asked: int | None, decoders: Iterable[Any]) -> None:
    """Set torch's number of threads, for threads that have not computed yet: what was asked for; else what
    the environment says; else one, where all decoders are small. Raises `OptionError`."""
    if asked is not None:
        torch.set_num_threads(check_integer("threads", asked, low=1))
    elif "OMP_NUM_THREADS" not in os.environ and all(map(_is_small, decoders)):
        torch.set_num_threads(1)


def _is_small(decoder: Any) -> bool:
    """Whether a decoder is on the CPU and gains nothing from more threads there."""
    on_cpu = decoder.device.type == "cpu"
    return on_cpu and sum(weight.numel() for weight in decoder.parameters()) < SMALL
