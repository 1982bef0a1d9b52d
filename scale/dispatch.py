"""Batches given to workers, of which any may die at any time: each batch is done once, or its rows fail."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from ..blocks.errors import BifronsError
from .rows import Row
from .tasks import Result
from .worker import failure

DEPTH = 2
"""Batches at a worker: one in work, and one that waits or whose files are made."""
_DEATHS = 3
"""So many workers may die of a batch, and then of each of its rows alone; and so many before they are ready,
if no other is."""


@dataclass(frozen=True)
class Batch:
    """Rows of one shard that are done together. deaths: workers that have died of it."""

    shard: int
    rows: tuple[Row, ...]
    deaths: int = 0


@dataclass(frozen=True)
class Event:
    """What a worker reports, or what is known of it: it is ready; its model can't be loaded (`text`); a
    batch is done, named by its ticket; or it died (`text` says of what)."""

    kind: Literal["ready", "refused", "done", "died"]
    worker: int
    ticket: int = -1
    results: Sequence[Result] = ()
    text: str = ""


class Pool(Protocol):
    """Workers by number. One that died is started again by the pool."""

    def send(self, worker: int, ticket: int, rows: Sequence[Row]) -> None:
        """Give a batch to a worker that was ready. Its death, even before, is an event, no error."""
        ...

    def wait(self) -> list[Event]:
        """Wait for at least one event."""
        ...


class Dispatcher:
    """Gives batches to the workers of a pool. `restarts` counts workers that died."""

    def __init__(self, pool: Pool) -> None:
        self.restarts = 0
        self._pool = pool
        self._work: dict[int, dict[int, Batch]] = {}
        """Batches by ticket, oldest first, of each worker that is ready."""
        self._again: deque[Batch] = deque()
        self._tickets = self._early_deaths = 0

    def run(self, batches: Iterator[Batch], done: Callable[[Batch, Sequence[Result]], None]) -> None:
        """Have all batches done, each of which is handed over once. Raises BifronsError where no worker can
        load the model, and what `done` raises."""
        source: Iterator[Batch] | None = batches
        while True:
            while (worker := self._free()) is not None:
                batch = self._again.popleft() if self._again else next(source, None) if source else None
                if batch is None:
                    source = None
                    break
                self._tickets += 1
                self._work[worker][self._tickets] = batch
                self._pool.send(worker, self._tickets, batch.rows)
            if source is None and not self._again and not any(self._work.values()):
                return
            for event in self._pool.wait():
                self._handle(event, done)

    def _free(self) -> int | None:
        """The worker with least to do, if it may have more."""
        worker = min(self._work, key=lambda one: len(self._work[one]), default=None)
        return worker if worker is not None and len(self._work[worker]) < DEPTH else None

    def _handle(self, event: Event, done: Callable[[Batch, Sequence[Result]], None]) -> None:
        if event.kind == "refused":
            raise BifronsError(event.text)
        if event.kind == "ready":
            self._work[event.worker] = {}
            self._early_deaths = 0
        elif event.kind == "done":
            batch = self._work.get(event.worker, {}).pop(event.ticket, None)
            if batch is not None:
                done(batch, event.results)
        else:
            self.restarts += 1
            self._died(event, done)

    def _died(self, event: Event, done: Callable[[Batch, Sequence[Result]], None]) -> None:
        """Give the batches of a dead worker to others. The oldest may be what it died of."""
        if event.worker not in self._work:
            self._early_deaths += 1
            if self._early_deaths >= _DEATHS and not self._work:
                raise BifronsError(
                    f"{_DEATHS} workers in a row ended before they were ready, the last since it "
                    f"{event.text}; what is finished stays: run the same command again, maybe with fewer "
                    "workers"
                )
            return
        lost = list(self._work.pop(event.worker).values())
        if not lost:
            return
        first, *others = lost
        self._again.extend(others)
        first = replace(first, deaths=first.deaths + 1)
        if first.deaths < _DEATHS:
            self._again.appendleft(first)
        elif len(first.rows) > 1:
            self._again.extend(replace(first, rows=(row,), deaths=1) for row in first.rows)
        else:
            reason = f"{_DEATHS} workers died of this row, the last since it {event.text}"
            done(first, [failure(row, reason) for row in first.rows])
