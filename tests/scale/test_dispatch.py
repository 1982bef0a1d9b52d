"""Who gets which batch when workers die, and what a worker does with rows that fail; without a model."""

from collections import deque
from collections.abc import Callable, Sequence

import pytest
import torch
from bifrons.blocks.errors import BifronsError, PictureError
from bifrons.scale.dispatch import DEPTH, Batch, Dispatcher, Event
from bifrons.scale.rows import Row
from bifrons.scale.tasks import Result
from bifrons.scale.worker import Worker


class ScriptedPool:
    """Workers that do rows at once, and die of batches for which `dies` says so."""

    def __init__(self, workers: int, dies: Callable[[Sequence[Row]], bool]) -> None:
        self.events = deque(Event("ready", number) for number in range(workers))
        self.sent: dict[int, list[int]] = {number: [] for number in range(workers)}
        self.dies = dies

    def send(self, worker: int, ticket: int, rows: Sequence[Row]) -> None:
        assert len(self.sent[worker]) < DEPTH
        self.sent[worker].append(ticket)
        if any(event.kind == "died" and event.worker == worker for event in self.events):
            return
        if self.dies(rows):
            self.events.append(Event("died", worker, text="was killed by signal 9"))
        else:
            self.events.append(
                Event("done", worker, ticket, [Result(row.number, {"id": row.id}) for row in rows])
            )

    def wait(self) -> list[Event]:
        event = self.events.popleft()
        if event.kind == "died":
            self.events = deque(one for one in self.events if one.worker != event.worker)
            self.sent[event.worker] = []
            self.events.append(Event("ready", event.worker))
        elif event.kind == "done":
            self.sent[event.worker].remove(event.ticket)
        return [event]


def run(pool, batches: Sequence[Batch]) -> tuple[dict[int, Result], int]:
    found: dict[int, Result] = {}

    def done(batch: Batch, results: Sequence[Result]) -> None:
        for result in results:
            assert result.number not in found
            found[result.number] = result

    dispatcher = Dispatcher(pool)
    dispatcher.run(iter(batches), done)
    return found, dispatcher.restarts


BATCHES = [Batch(0, tuple(Row(4 * i + j, str(4 * i + j)) for j in range(4))) for i in range(5)]


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_every_row_is_done_once(workers: int) -> None:
    found, restarts = run(ScriptedPool(workers, lambda rows: False), BATCHES)
    assert sorted(found) == list(range(20))
    assert restarts == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_a_row_of_which_workers_die_fails_alone(workers: int) -> None:
    found, restarts = run(ScriptedPool(workers, lambda rows: any(row.number == 9 for row in rows)), BATCHES)
    assert sorted(found) == list(range(20))
    assert [number for number, one in found.items() if "error" in one.record] == [9]
    assert found[9].record["error"] == "3 workers died of this row, the last since it was killed by signal 9"
    assert restarts == 5


def test_a_worker_that_never_gets_ready_stops_no_other() -> None:
    class OneDies(ScriptedPool):
        def wait(self) -> list[Event]:
            return [Event("died", 9, text="was killed by signal 9"), *super().wait()]

    found, restarts = run(OneDies(1, lambda rows: False), BATCHES)
    assert sorted(found) == list(range(20))
    assert restarts > 3


def test_work_ends_where_no_worker_gets_ready() -> None:
    class Dying:
        def send(self, *_) -> None: ...

        def wait(self) -> list[Event]:
            return [Event("died", 0, text="was killed by signal 9")]

    with pytest.raises(BifronsError, match="3 workers in a row ended before they were ready, the last since"):
        run(Dying(), BATCHES)


class OddTask:
    """Rows 1 can't be prepared, a batch with row 3 fails, and one of more than two is out of memory."""

    def open(self, device: str) -> "OddTask":
        return self

    def prepare(self, row: Row) -> int:
        if row.number == 1:
            raise PictureError("no picture")
        return row.number * 10

    def compute(self, rows: Sequence[Row], prepared: Sequence[int]) -> list[int]:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if any(row.number == 3 for row in rows):
            raise BifronsError("too long")
        if any(row.number == 20 for row in rows):
            raise RuntimeError("device-side assert")
        return list(prepared)

    def finish(self, row: Row, output: int) -> Result:
        return Result(row.number, {"id": row.id, "output": output})


def test_a_row_that_fails_takes_no_other_with_it() -> None:
    worker = Worker(OddTask(), "cpu")  # type: ignore[arg-type]
    rows = [Row(number, str(number), content={"image": b"png", "question": "?"}) for number in range(8)]
    records = [result.record for result in worker.results(rows)]
    assert [record.get("output") for record in records] == [0, None, 20, None, 40, 50, 60, 70]
    assert records[1] == {"id": "1", "seed": 0, "question": "?", "error": "no picture"}
    assert records[3]["error"] == "too long"
    with pytest.raises(RuntimeError, match="device-side"):  # after a fault the worker ends
        worker.results([Row(20, "20")])
