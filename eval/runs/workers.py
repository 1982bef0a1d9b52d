"""Work shared between child processes."""

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from ...blocks.device import resolve_device
from ...blocks.errors import BifronsError, check_integer
from ...blocks.torch_threads import set_threads
from ...scale.placement import device_names
from ...scale.progress import Advance, work_progress
from .record import recorded

T = TypeVar("T")
Item = TypeVar("Item", contravariant=True)
Record = Callable[[], AbstractContextManager[Advance | None]]


class Worker(Protocol[Item]):
    """What each process does with its share; picklable. `advance(n)` reports that n more images are done."""

    def __call__(self, share: Sequence[Item], device: str, advance: Advance) -> None: ...


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
    with work_progress(what, images, unit) as advance:
        if processes == 1:
            _run_here(worker, items, kind, threads, advance, record)
        else:
            _run_children(worker, items, device_names(kind, processes), threads, advance, record)


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
