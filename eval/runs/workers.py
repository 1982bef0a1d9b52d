"""Work shared among processes: our own, or those of torchrun, accelerate or a job queue."""

import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from tqdm import tqdm

from ...blocks.device import free_bytes, resolve_device
from ...blocks.engine.sampling_params import check_integer
from ...blocks.errors import BifronsError, OptionError

T = TypeVar("T")
Item = TypeVar("Item", contravariant=True)
Advance = Callable[[int], None]

_WORKING_ROOM = 3
"""Memory of a process that paints on the CPU, as a multiple of its weights: cache and activations too."""


class Worker(Protocol[Item]):
    """What each process does with its share; picklable. `advance(n)` tells that n more pictures are done."""

    def __call__(self, share: Sequence[Item], device: str, advance: Advance) -> None: ...


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that were started together. `linked` ones can talk to each other;
    others were started by hand, at any time, and share nothing but the folder."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    linked: bool = False

    def divide(self, everything: Sequence[T], left: Callable[[Sequence[T]], list[T]]) -> list[T]:
        """This rank's share of what is left, where `left(items)` looks at the disk.

        Linked ranks stride over one list, that of rank 0: each looking for itself would see what the quicker
        have done since. Ranks by hand stride over everything, which is the same whenever they look.
        """
        if not self.linked:
            return left(everything[self.rank :: self.size])
        box: list[Any] = [left(everything) if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0)
        return box[0][self.rank :: self.size]

    def device(self, device: str | None) -> str | None:
        """The device as asked for; unasked, each linked rank of a host has a GPU of its own."""
        if device is None and self.linked and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return device

    def wait(self) -> None:
        """Until all linked ranks are here."""
        if self.linked:
            dist.barrier()


@contextlib.contextmanager
def join_ranks(rank: int | None = None, size: int | None = None) -> Iterator[Ranks]:
    """The ranks by hand (`rank` of `size`), else those of torchrun's or accelerate's environment, else one.

    Raises OptionError for a rank out of its range or half of the pair.
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


def default_processes(device: str | None, weights: int) -> int:
    """One per GPU, or, on the CPU, one per core that the memory has room for. `weights`: bytes in float32."""
    chosen = torch.device(resolve_device(device))
    if chosen.type == "cuda":
        return torch.cuda.device_count() if chosen.index is None else 1
    if chosen.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, free_bytes(chosen) // max(1, _WORKING_ROOM * weights)))


def run_workers(
    worker: Worker[T],
    items: Sequence[T],
    pictures: int,
    processes: int,
    device: str | None,
    threads: int,
    what: str,
) -> None:
    """Run `worker` on the items with so many processes and a progress bar over `pictures` on stderr.

    Each process computes with `threads` threads on the CPU; on GPUs, process i has GPU i. With one process it
    is this one. Raises BifronsError with the first message of a process that failed; the others are ended.
    """
    check_integer("processes", processes, low=1)
    check_integer("threads", threads, low=1)
    kind = str(resolve_device(device))
    processes = min(processes, max(1, len(items)))
    with tqdm(total=pictures, desc=what, unit=" pictures", file=sys.stderr, mininterval=_pace()) as bar:
        if processes == 1:
            before = torch.get_num_threads()
            torch.set_num_threads(threads)

            def advance(number: int) -> None:
                bar.update(number)

            try:
                worker(items, kind, advance)
            finally:
                torch.set_num_threads(before)
            return
        devices = _devices(kind, processes)
        context = get_context("spawn")
        news: Any = context.Queue()
        children = [
            context.Process(target=_child, args=(worker, items[i::processes], devices[i], threads, news))
            for i in range(processes)
        ]
        try:
            for child in children:
                child.start()
            _follow(children, news, bar)
            for child in children:
                child.join()  # each ends by itself now
        finally:
            for child in children:
                if child.pid is not None:
                    child.terminate()
                    child.join()


def _pace() -> float:
    return 0.1 if sys.stderr.isatty() else 15.0


def _devices(kind: str, processes: int) -> list[str]:
    if kind != "cuda":
        return [kind] * processes
    return [f"cuda:{i % torch.cuda.device_count()}" for i in range(processes)]


def _follow(children: Sequence[Any], news: Any, bar: tqdm) -> None:
    """Until all have said that they are done."""
    done = 0
    while done < len(children):
        try:
            word, value = news.get(timeout=1.0)
        except queue.Empty:
            # A process that was killed says nothing; one that ended well said so before.
            broken = [child for child in children if child.exitcode not in (None, 0)]
            if broken:
                raise BifronsError(
                    f"a process ended with status {broken[0].exitcode}; what is finished is kept: "
                    "run the same command again"
                ) from None
            continue
        if word == "error":
            raise BifronsError(value)
        if word == "done":
            done += 1
        else:
            bar.update(value)


def _child(worker: Worker[T], share: Sequence[T], device: str, threads: int, news: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its children
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own would be shared among processes, and left over when this ends
    try:
        worker(share, device, lambda number: news.put(("advance", number)))
    except BifronsError as error:
        news.put(("error", str(error)))
    else:
        news.put(("done", 0))


def _end_with_parent() -> None:
    """A parent that was killed can't end its children; left alone, they would paint beside the next run."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def weights_bytes(folder: Path) -> int:
    """What a checkpoint's floating-point numbers take as float32."""
    from ...blocks.checkpoints.reader import list_tensors

    return sum(entry.nbytes // entry.dtype.itemsize * 4 for entry in list_tensors(folder).values())
