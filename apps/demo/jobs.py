"""Work behind the page: a line in front of each model, jobs to follow and to stop, and who runs what."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...blocks.errors import BifronsError

MAX_WAITING = 16
"""How many jobs may wait for one model; who comes then is told to come back."""


class Stopped(Exception):
    """The visitor has stopped the job, or has left."""


@dataclass(frozen=True)
class Waiting:
    """The job waits for its turn; `ahead` jobs come before it."""

    ahead: int


class Line:
    """One job at a time, in the order of arrival, and at most `room` that wait."""

    def __init__(self, room: int = MAX_WAITING) -> None:
        self.room = room
        self._tickets: deque[object] = deque()
        self._moved = threading.Condition()

    @contextmanager
    def turn(self, waiting: Callable[[int], None]) -> Iterator[None]:
        """Wait for one's turn and keep it. `waiting(ahead)` is called now and then; raising there gives up.

        BifronsError where the line is full.
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
    """`work(job)` on a thread of its own when its turn comes; it calls `tell` and so can be stopped."""

    def __init__(self, line: Line, work: Callable[["Job"], Any]) -> None:
        self._line, self._work = line, work
        self._asked_to_stop = threading.Event()
        self._news = threading.Condition()
        self._latest: Any = None
        self._unseen = self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="bifrons-demo-job", daemon=True)
        self.result: Any = None

    def check(self) -> None:
        """Raises `Stopped` once somebody has called `stop`."""
        if self._asked_to_stop.is_set():
            raise Stopped

    def tell(self, update: Any) -> None:
        """Leave an update for the follower, in place of one not yet seen. Raises as `check` does."""
        self.check()
        with self._news:
            self._latest, self._unseen = update, True
            self._news.notify_all()

    def stop(self) -> None:
        self._asked_to_stop.set()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def updates(self) -> Iterator[Any]:
        """Start the work and yield its updates; then `result` is there, or what the work raised is raised.

        Whoever stops iterating stops the work.
        """
        self._thread.start()
        try:
            while True:
                with self._news:
                    self._news.wait_for(lambda: self._unseen or self._ended)
                    if not self._unseen:
                        break
                    update, self._unseen = self._latest, False
                yield update
        finally:
            self.stop()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with self._line.turn(lambda ahead: self.tell(Waiting(ahead))):
                self.check()
                self.result = self._work(self)
        except BaseException as error:  # raised again where the updates are read
            self._error = error
        finally:
            with self._news:
                self._ended = True
                self._news.notify_all()


class Jobs:
    """Which job each visitor's tab runs: at most one, so that a new one stops the one before."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], Job] = {}
        self._lock = threading.Lock()

    def add(self, visitor: str | None, tab: str, job: Job) -> None:
        """Know the job as the visitor's; to be called before the page offers to stop it."""
        with self._lock:
            before = self._running.get((visitor or "", tab))
            self._running[visitor or "", tab] = job
        if before is not None:
            before.stop()

    def remove(self, visitor: str | None, tab: str, job: Job) -> None:
        with self._lock:
            if self._running.get((visitor or "", tab)) is job:
                del self._running[visitor or "", tab]

    def stop(self, visitor: str | None, tab: str) -> None:
        with self._lock:
            job = self._running.get((visitor or "", tab))
        if job is not None:
            job.stop()

    def leave(self, visitor: str | None) -> None:
        """The visitor has closed the page."""
        with self._lock:
            keys = [key for key in self._running if key[0] == (visitor or "")]
            jobs = [self._running.pop(key) for key in keys]
        for job in jobs:
            job.stop()

    def __len__(self) -> int:
        return len(self._running)
