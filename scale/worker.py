"""What a worker does, whatever has started it: a process of this machine or an actor of a Ray cluster."""

import threading
from collections.abc import Sequence
from typing import Any

from ..blocks.device import is_out_of_memory
from ..blocks.errors import BifronsError
from .rows import Row
from .tasks import Result, Task


class Worker:
    """A task with its model on a device. `compute` and then `finish` make the results of rows."""

    def __init__(self, task: Task, device: str) -> None:
        """Load the model. Raises BifronsError."""
        self._task = task.open(device)
        self._lock = threading.Lock()

    def results(self, rows: Sequence[Row]) -> list[Result]:
        """The result of each row; may be called from two threads, one of which computes at a time while the
        other makes files of what it computed before."""
        with self._lock:
            outputs = self.compute(rows)
        return self.finish(rows, outputs)

    def compute(self, rows: Sequence[Row]) -> list[Any]:
        """An output or a reason, a BifronsError, for each row."""
        reasons: dict[int, BifronsError] = {}
        prepared: dict[int, Any] = {}
        for row in rows:
            try:
                prepared[row.number] = self._task.prepare(row)
            except BifronsError as error:
                reasons[row.number] = error
        good = [row for row in rows if row.number in prepared]
        outputs = dict(zip((row.number for row in good), self._together(good, prepared), strict=True))
        return [reasons.get(row.number) or outputs[row.number] for row in rows]

    def _together(self, rows: Sequence[Row], prepared: dict[int, Any]) -> list[Any]:
        """Outputs of rows in one batch, in halves where that fails."""
        if not rows:
            return []
        try:
            return list(self._task.compute(rows, [prepared[row.number] for row in rows]))
        except BifronsError as error:
            reason = error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = BifronsError("out of memory; accepted: a smaller dtype or quantized weights")
        if len(rows) == 1:
            return [reason]
        middle = len(rows) // 2
        return self._together(rows[:middle], prepared) + self._together(rows[middle:], prepared)

    def finish(self, rows: Sequence[Row], outputs: Sequence[Any]) -> list[Result]:
        """The results of `compute`'s outputs."""
        return [
            failure(row, str(output)) if isinstance(output, BifronsError) else self._task.finish(row, output)
            for row, output in zip(rows, outputs, strict=True)
        ]


def failure(row: Row, reason: str) -> Result:
    """The result of a row that can't be done; pictures in bytes are left out of what is recorded."""
    content = {name: value for name, value in row.content.items() if not isinstance(value, bytes)}
    return Result(row.number, {"id": row.id, "seed": row.seed, **content, "error": reason})
