"""Background jobs of the page: a queue per model, jobs that report progress and can be stopped, and their
owners."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from ...blocks.errors import BifronsError

MAX_WAITING = 16
"""Jobs that may wait for one model; the next is refused with a message to try again."""


class Stopped(Exception):
    """The visitor has stopped the job or closed the page."""


@dataclass(frozen=True)
class Waiting:
    """A job's update while it waits; `ahead` jobs run before it."""

    ahead: int


class JobQueue:
    """Runs one job at a time, first come first served, with at most `room` waiting."""

    def __init__(self, room: int = MAX_WAITING) -> None:
        self.room = room
        self._tickets: deque[object] = deque()
        self._moved = threading.Condition()

    @contextmanager
    def turn(self, waiting: Callable[[int], None]) -> Iterator[None]:
        """Wait for a turn and hold it. `waiting(ahead)` is called every 0.2 s; an exception there gives up
        the turn.

        Raises `BifronsError` where the queue is full.
        """
        ticket = object()
        with self._moved:
            if len(self._tickets) > self.room:
                raise BifronsError(f"{self.room} others wait for this model already; try again in a while")
            self._tickets.append(ticket)
        try:
            while ahead := self._ahead(ticket):
                waiting(ahead)
                with self._moved:
                    self._moved.wait(0.2)
            yield
        finally:
            with self._moved:
                self._tickets.remove(ticket)
                self._moved.notify_all()

    def _ahead(self, ticket: object) -> int:
        with self._moved:
            return self._tickets.index(ticket)


class Job:
    """Runs `work(job)` on its own thread when its turn comes.

    The work calls `report` with its progress, which is also where it is stopped.
    """

    def __init__(self, queue: JobQueue, work: Callable[["Job"], Any]) -> None:
        self._queue, self._work = queue, work
        self._stop_requested = threading.Event()
        self._changed = threading.Condition()
        self._latest_update: Any = None
        self._unseen = self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="bifrons-demo-job", daemon=True)
        self.result: Any = None

    def check(self) -> None:
        """Raise `Stopped` if `stop` was called."""
        if self._stop_requested.is_set():
            raise Stopped

    def report(self, update: Any) -> None:
        """Publish an update, replacing one that was not read yet. Raises `Stopped` as `check` does."""
        self.check()
        with self._changed:
            self._latest_update, self._unseen = update, True
            self._changed.notify_all()

    def stop(self) -> None:
        """Ask the work to stop at its next `report` or `check`."""
        self._stop_requested.set()

    @property
    def running(self) -> bool:
        """Whether the job's thread is alive."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> bool:
        """Wait until the job's thread has ended; returns whether it has, or was never started."""
        if self.running:
            self._thread.join(seconds)
        return not self.running

    def updates(self) -> Iterator[Any]:
        """Start the work and yield its updates. Afterwards `result` is set, or the work's exception is
        raised.

        Closing the iterator stops the work.
        """
        self._thread.start()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._unseen or self._ended)
                    if not self._unseen:
                        break
                    update, self._unseen = self._latest_update, False
                yield update
        finally:
            self.stop()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with self._queue.turn(lambda ahead: self.report(Waiting(ahead))):
                self.check()
                self.result = self._work(self)
        except BaseException as error:  # raised again where the updates are read
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()


class Jobs:
    """The running job of each visitor's tab: at most one, so a new job stops the one before."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], Job] = {}
        self._all: WeakSet[Job] = WeakSet()
        """Also those whose visitor has left; a job is kept alive by its thread."""
        self._lock = threading.Lock()
        self._closed = False

    def add(self, visitor: str | None, tab: str, job: Job) -> None:
        """Register a job; call this before the page offers to stop it."""
        with self._lock:
            before = self._running.get((visitor or "", tab))
            self._running[visitor or "", tab] = job
            self._all.add(job)
            if self._closed:
                job.stop()
        if before is not None:
            before.stop()

    def remove(self, visitor: str | None, tab: str, job: Job) -> None:
        """Forget a job that has ended."""
        with self._lock:
            if self._running.get((visitor or "", tab)) is job:
                del self._running[visitor or "", tab]

    def has(self, visitor: str | None, tab: str) -> bool:
        """Whether a visitor's tab has a job."""
        with self._lock:
            return (visitor or "", tab) in self._running

    def stop(self, visitor: str | None, tab: str) -> None:
        """Stop the job of a visitor's tab, if there is one."""
        with self._lock:
            job = self._running.get((visitor or "", tab))
        if job is not None:
            job.stop()

    def leave(self, visitor: str | None) -> None:
        """Stop and forget all jobs of a visitor."""
        with self._lock:
            keys = [key for key in self._running if key[0] == (visitor or "")]
            jobs = [self._running.pop(key) for key in keys]
        for job in jobs:
            job.stop()

    def close(self, seconds: float) -> bool:
        """Stop all jobs, and those that are added from now on; returns whether they ended in that time."""
        with self._lock:
            self._closed = True
            jobs = list(self._all)
        for job in jobs:
            job.stop()
        deadline = time.monotonic() + seconds
        return all([job.wait(max(0.0, deadline - time.monotonic())) for job in jobs])

    def __len__(self) -> int:
        return len(self._running)
