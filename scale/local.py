"""Worker processes of this machine.

Each has a pipe of its own, so that a process killed at any moment blocks no other. They are forked by a
process that has imported torch but holds no model, so that a new one costs what loading the model does.
"""

import os
import queue
import signal
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from tqdm import tqdm

from ..blocks.errors import BifronsError, UnknownWordsWarning
from ..blocks.torch_threads import set_threads
from .dispatch import Event
from .rows import Row
from .tasks import Task
from .worker import Worker

_IMPORTED = [__name__, "torch._dynamo"]
"""What a new process finds imported; torch imports the second when a model is made."""
_GRACE = 5.0
"""Seconds that a process gets to end itself."""


class LocalPool:
    """One process for each device; see `dispatch.Pool`. threads: torch's, of each on a CPU."""

    def __init__(self, task: Task, devices: Sequence[str], threads: int) -> None:
        method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
        self._context: Any = get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload(_IMPORTED)
        self._task, self._devices, self._threads = task, list(devices), threads
        self._processes: list[Any] = [None] * len(devices)
        self._connections: list[Any] = [None] * len(devices)
        self._reasons: dict[int, str] = {}
        for worker in range(len(devices)):
            self._start(worker)

    def _start(self, worker: int) -> None:
        own, other = self._context.Pipe()
        arguments = self._task, self._devices[worker], self._threads, other
        process = self._context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        other.close()
        self._processes[worker], self._connections[worker] = process, own

    @property
    def pids(self) -> list[int]:
        """The processes' ids."""
        return [process.pid for process in self._processes]

    def send(self, worker: int, ticket: int, rows: Sequence[Row]) -> None:
        """See `dispatch.Pool`."""
        with suppress(OSError):  # `wait` finds that it died
            self._connections[worker].send((ticket, tuple(rows)))

    def wait(self) -> list[Event]:
        """See `dispatch.Pool`."""
        numbers = {id(connection): number for number, connection in enumerate(self._connections)}
        return [self._receive(numbers[id(connection)]) for connection in wait(self._connections)]

    def _receive(self, worker: int) -> Event:
        try:
            kind, ticket, value = self._connections[worker].recv()
        except (EOFError, OSError):
            return self._died(worker)
        if kind == "broken":
            self._reasons[worker] = value
            return self._died(worker)
        if kind == "done":
            return Event("done", worker, ticket, value)
        return Event(kind, worker, text=value)

    def _died(self, worker: int) -> Event:
        process = self._processes[worker]
        process.join(_GRACE)
        _end(process)
        status = process.exitcode
        ended = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        self._connections[worker].close()
        self._start(worker)
        return Event("died", worker, text=self._reasons.pop(worker, ended))

    def close(self) -> None:
        """End all processes."""
        for process, connection in zip(self._processes, self._connections, strict=True):
            connection.close()
            process.terminate()
        for process in self._processes:
            process.join(_GRACE)
            _end(process)


def _end(process: Any) -> None:
    if process.exitcode is None:
        process.kill()
        process.join()


def _serve(task: Task, device: str, threads: int, connection: Connection) -> None:
    """A worker process: it loads the model, then does what arrives, and ends with the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches that one too, which ends this
    warnings.simplefilter("ignore", UnknownWordsWarning)
    tqdm.set_lock(threading.RLock())  # tqdm's own is shared between processes and would leak
    set_threads(threads)
    waiting: queue.Queue[tuple[int, Sequence[Row]]] = queue.Queue()
    threading.Thread(target=_read, args=(connection, waiting), daemon=True).start()
    reports = _Reports(connection)
    try:
        worker = Worker(task, device)
        reports.send("ready", -1, "")
        _work(worker, waiting, reports)
    except BifronsError as error:
        reports.send("refused", -1, str(error))
    except Exception as error:
        reports.broken(error)


class _Reports:
    """What a worker process says, one message at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, kind: str, ticket: int, value: Any) -> None:
        with self._lock:
            self._connection.send((kind, ticket, value))

    def broken(self, error: Exception) -> None:
        """Report a fault, of torch or of ours, after which the process can't be trusted, and end it."""
        self.send("broken", -1, f"ended by {type(error).__name__}: {error}")
        os._exit(1)


def _read(connection: Connection, waiting: queue.Queue) -> None:
    """Take batches from the pipe at once, so that its other end never waits."""
    while True:
        try:
            waiting.put(connection.recv())
        except (EOFError, OSError):  # the other end is gone
            os._exit(1)


def _work(worker: Worker, waiting: queue.Queue, reports: _Reports) -> None:
    """Compute one batch while the files of the one before are made."""

    def finish(ticket: int, rows: Sequence[Row], outputs: list[Any]) -> None:
        try:
            reports.send("done", ticket, worker.finish(rows, outputs))
        except Exception as error:
            reports.broken(error)

    last: Future[None] | None = None
    with ThreadPoolExecutor(1) as finishing:
        while True:
            ticket, rows = waiting.get()
            outputs = worker.compute(rows)
            if last is not None:
                last.result()
            last = finishing.submit(finish, ticket, rows, outputs)
