"""Ranks that share a run: of torchrun or accelerate, or started by hand or by a job queue."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ...blocks.errors import OptionError, check_integer

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's rank among those that share a run.

    linked: they form a torch.distributed group. Others are started by hand, at any time, and share nothing
    but the folder.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    linked: bool = False

    def divide(self, items: Sequence[T], unfinished: Callable[[Sequence[T]], list[T]]) -> list[T]:
        """This rank's share of the unfinished items, which `unfinished` reads from the disk.

        Linked ranks divide one list, that of rank 0, since faster ranks may already have finished items when
        slower ones read the disk. Ranks by hand divide all items, which are the same at any time.
        """
        if not self.linked:
            return unfinished(items[self.rank :: self.size])
        broadcast: list[Any] = [unfinished(items) if self.rank == 0 else None]
        dist.broadcast_object_list(broadcast, src=0)
        return broadcast[0][self.rank :: self.size]

    def device(self, device: str | None) -> str | None:
        """The given device; by default, each linked rank of a host has a GPU of its own."""
        if device is None and self.linked and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return device

    def wait(self) -> None:
        """Block until all linked ranks call this."""
        if self.linked:
            dist.barrier()


@contextmanager
def join_ranks(rank: int | None = None, size: int | None = None) -> Iterator[Ranks]:
    """The ranks given by hand (`rank` of `size`), else those in torchrun's environment, else a single one.

    Raises OptionError for a rank out of its range, or only one of the two.
    """
    if rank is not None or size is not None:
        if rank is None or size is None:
            raise OptionError("rank and world size belong together; accepted: both or none")
        check_integer("world size", size, low=1)
        check_integer("rank", rank, 0, size - 1)
        yield Ranks(rank, size)
        return
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    dist.init_process_group("gloo")
    try:
        yield Ranks(dist.get_rank(), size, int(os.environ.get("LOCAL_RANK", "0")), linked=True)
    finally:
        dist.destroy_process_group()
