"""Work shared between child processes, and where their models lie."""

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from tqdm import tqdm

from ...blocks.device import free_bytes, resolve_device
from ...blocks.errors import BifronsError, OptionError, check_integer, counted
from ...blocks.progress import progress_bar
from ...blocks.torch_threads import set_threads
from .record import recorded

T = TypeVar("T")
Item = TypeVar("Item", contravariant=True)
Advance = Callable[[int], Any]
Record = Callable[[], AbstractContextManager[Advance | None]]

_LINE_SECONDS = 60.0
"""Time between two lines of progress where stderr is no terminal."""
_MEMORY_FACTOR = 3
"""Memory of a generating process on the CPU (weights, cache, activations) as a multiple of its weights."""


class Worker(Protocol[Item]):
    """What each process does with its share; picklable. `advance(n)` reports that n more images are done."""

    def __call__(self, share: Sequence[Item], device: str, advance: Advance) -> None: ...


@dataclass(frozen=True)
class Placement:
    """Where a worker's model lies, which determines no result; picklable.

    device_map, max_memory: as in `blocks.placement.device_map.LoadOptions`. eager: capture no CUDA graphs.
    """

    device_map: str | Mapping[str, Any] | None = None
    max_memory: Mapping[str, Any] | None = None
    eager: bool = False

    def check(self, device: str | None, processes: int | None) -> None:
        """Raise OptionError for options that exclude each other."""
        if self.device_map is None:
            if self.max_memory is not None:
                raise OptionError("max_memory has no device_map; accepted: with device_map auto or balanced")
        elif device is not None:
            raise OptionError(f"device is {device!r} and there is a device_map too; accepted: one of them")
        elif processes not in (None, 1):
            raise OptionError(
                f"processes is {processes}, but a device_map spreads one model over all devices; accepted: 1"
            )

    def keywords(self, device: str | None) -> dict[str, Any]:
        """The arguments of `from_pretrained` in a process that was given a device."""
        return {
            "device": device if self.device_map is None else None,
            "device_map": self.device_map,
            "max_memory": self.max_memory,
            "capture": False if self.eager else None,
        }


NO_PLACEMENT = Placement()
"""The whole model on the process's device."""


def default_processes(device: str | None, weights: int) -> int:
    """One per GPU, or one per CPU core as far as the memory allows. weights: bytes in float32."""
    chosen = torch.device(resolve_device(device))
    if chosen.type == "cuda":
        return torch.cuda.device_count() if chosen.index is None else 1
    if chosen.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, free_bytes(chosen) // max(1, _MEMORY_FACTOR * weights)))


def run_workers(
    worker: Worker[T],
    items: Sequence[T],
    images: int,
    processes: int,
    device: str | None,
    threads: int,
    what: str,
    root: Path | None = None,
    unit: str = "picture",
) -> None:
    """Run `worker` on the items in `processes` processes, with progress over `images` (units) on stderr.

    root: a run folder in which each process records its time, as that of the stage `what`. Each uses
    `threads` threads on the CPU; process i has GPU i. A single process is this one. Raises BifronsError with
    the first message of a process that failed; the others are terminated.
    """
    check_integer("processes", processes, low=1)
    check_integer("threads", threads, low=1)
    kind = str(resolve_device(device))
    processes = min(processes, max(1, len(items)))
    record = nullcontext if root is None else partial(recorded, root, what, kind, processes, time.time())
    with _progress(what, images, unit) as advance:
        if processes == 1:
            _run_here(worker, items, kind, threads, advance, record)
        else:
            _run_children(worker, items, _devices(kind, processes), threads, advance, record)


@contextlib.contextmanager
def _progress(what: str, images: int, unit: str) -> Iterator[Advance]:
    """A bar over `images` (units) on terminals; a line a minute elsewhere, unless bars are turned off."""
    done, shown = 0, time.monotonic()
    with progress_bar(images, what, f" {unit}s") as bar:

        def advance(number: int) -> None:
            nonlocal done, shown
            done += number
            bar.update(number)
            if bar.disable and "TQDM_DISABLE" not in os.environ and time.monotonic() > shown + _LINE_SECONDS:
                print(f"{what}: {done:,} of {counted(images, unit)}", file=sys.stderr, flush=True)
                shown = time.monotonic()

        yield advance


def _run_here(
    worker: Worker[T], items: Sequence[T], device: str, threads: int, advance: Advance, record: Record
) -> None:
    set_threads(threads)
    try:
        _work(worker, items, device, advance, record)
    finally:
        set_threads(None)


def _work(worker: Worker[T], share: Sequence[T], device: str, advance: Advance, record: Record) -> None:
    """Do a share, and record it in the process that does: a report to another one is lost where either is
    killed."""
    done = 0
    with record() as report:

        def finished(number: int) -> None:
            nonlocal done
            done += number
            if report is not None:
                report(done)
            advance(number)

        worker(share, device, finished)


def _run_children(
    worker: Worker[T],
    items: Sequence[T],
    devices: Sequence[str],
    threads: int,
    advance: Advance,
    record: Record,
) -> None:
    context = get_context("spawn")
    messages: Any = context.Queue()
    children = [
        context.Process(
            target=_child, args=(worker, items[i :: len(devices)], device, threads, messages, record)
        )
        for i, device in enumerate(devices)
    ]
    try:
        for child in children:
            child.start()
        _follow(children, messages, advance)
        for child in children:
            child.join()
    finally:
        for child in children:
            if child.pid is not None:
                child.terminate()
                child.join()


def _devices(kind: str, processes: int) -> list[str]:
    if kind != "cuda":
        return [kind] * processes
    return [f"cuda:{i % torch.cuda.device_count()}" for i in range(processes)]


def _follow(children: Sequence[Any], messages: Any, advance: Advance) -> None:
    """Tell `advance` of finished images until all processes have reported that they are done."""
    done = 0
    while done < len(children):
        try:
            kind, value = messages.get(timeout=1.0)
        except queue.Empty:
            # A killed process reports nothing; one that ended well has reported it before.
            broken = [child for child in children if child.exitcode not in (None, 0)]
            if broken:
                raise BifronsError(
                    f"a process ended with status {broken[0].exitcode}; what is finished is kept: "
                    "run the same command again"
                ) from None
            continue
        if kind == "error":
            raise BifronsError(value)
        if kind == "done":
            done += 1
        else:
            advance(value)


def _child(
    worker: Worker[T], share: Sequence[T], device: str, threads: int, messages: Any, record: Record
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its children
    threading.Thread(target=_end_with_parent, daemon=True).start()
    set_threads(threads)
    tqdm.set_lock(threading.RLock())  # tqdm's own is shared between processes and would leak
    try:
        _work(worker, share, device, lambda number: messages.put(("advance", number)), record)
    except BifronsError as error:
        messages.put(("error", str(error)))
    else:
        messages.put(("done", 0))


def _end_with_parent() -> None:
    """Exit with a killed parent, which can't terminate its children: they would disturb the next run."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def weights_bytes(folder: Path) -> int:
    """The size of a checkpoint's weights in float32, in bytes."""
    from ...blocks.checkpoints.reader import list_tensors

    return sum(entry.nbytes // entry.dtype.itemsize * 4 for entry in list_tensors(folder).values())
