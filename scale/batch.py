"""A run of a batch: the recipe of its folder, which shards are to be done, and the batches of their rows."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..blocks.errors import BifronsError, OptionError, check_integer
from ..eval.atomic_io import make_folder, write_recipe
from .dispatch import Batch, Dispatcher, Pool
from .progress import Advance
from .rows import Row, Source, check_rows
from .shards import FORMATS, Shard, arrow_schema, collect_failed, is_finished, remove_leftovers
from .tasks import Result, Task
from .worker import failure

_PICTURES = 1 << 30
"""Most bytes of pictures in the rows of a shard, which are held in memory."""


@dataclass(frozen=True)
class BatchRun:
    """What is done with which rows, and where the results go. Raises OptionError.

    form: one of `FORMATS`. shard_size: rows of a shard. batch_size: rows that a worker does at once, which
    are the same for any number of workers.
    """

    root: Path
    source: Source
    task: Task
    form: str
    shard_size: int
    batch_size: int

    def __post_init__(self) -> None:
        check_integer("shard_size", self.shard_size, 1, 1_000_000)
        check_integer("batch_size", self.batch_size, 1, 4096)
        if self.form not in FORMATS:
            raise OptionError(f"format is {self.form!r}; accepted: {', '.join(FORMATS)}")
        if self.form == "parquet":
            arrow_schema(self.task)

    def begin(self) -> "Plan":
        """Read all rows once and write the recipe, or check that the folder has this one. The folder must be
        this process's alone. Raises BifronsError."""
        digests, bad, count = check_rows(self.source.rows(), self.source.path, self.shard_size)
        recipe = {
            "command": f"batch {self.task.name}",
            "rows": hashlib.sha256(b"".join(digests)).hexdigest(),
            "count": count,
            "seed": self.source.seed,
            "format": self.form,
            "shard_size": self.shard_size,
            "batch_size": self.batch_size,
            **self.task.settings(),
            **self.task.model.identity(),
        }
        make_folder(self.root)
        command = f"bifrons batch {self.task.name}"
        write_recipe(self.root / "batch.json", recipe, command, free=("model", "adapters"))
        todo = [number for number in range(len(digests)) if not is_finished(self.root, number)]
        remove_leftovers(self.root, todo)
        return Plan(self, digests, bad, count, todo)


@dataclass(frozen=True)
class Plan:
    """A run whose rows were read once. digests: of each shard; bad: the first rows that can't be done; count:
    of all rows; todo: the shards that aren't finished."""

    run: BatchRun
    digests: Sequence[bytes]
    bad: Sequence[Row]
    count: int
    todo: Sequence[int]

    @property
    def rows_to_do(self) -> int:
        """Rows of unfinished shards, those included that their spools have."""
        size, last = self.run.shard_size, len(self.digests) - 1
        return sum(size if number < last else self.count - last * size for number in self.todo)

    def work(self, pool: Pool, advance: Advance) -> int:
        """Do what is missing; returns how many workers died meanwhile. Raises BifronsError."""
        shards = _Shards(self, advance)
        dispatcher = Dispatcher(pool)
        try:
            dispatcher.run(shards.batches(), shards.add)
        finally:
            shards.close()
        return dispatcher.restarts

    def close(self) -> tuple[int, int]:
        """Once all is done: write failed.jsonl; returns how many rows there are and how many failed."""
        return collect_failed(self.run.root, len(self.digests))

    def shards(self) -> Iterator[tuple[int, list[Row]]]:
        """The unfinished shards with their rows. Raises BifronsError where the file has changed since."""
        rows, todo = self.run.source.rows(), set(self.todo)
        for number, expected in enumerate(self.digests):
            found = list(islice(rows, self.run.shard_size))
            digest = hashlib.sha256()
            for row in found:
                digest.update(row.digest())
            if digest.digest() != expected:
                raise BifronsError(
                    f"{self.run.source.path} was changed while it was read; what is finished stays. "
                    "Accepted: the same rows again, or another folder"
                )
            if number in todo:
                yield number, found


class _Shards:
    """The shards in work."""

    def __init__(self, plan: Plan, advance: Advance) -> None:
        self._plan, self._advance = plan, advance
        self._open: dict[int, Shard] = {}

    def batches(self) -> Iterator[Batch]:
        """The batches that are missing, shard by shard."""
        run = self._plan.run
        for number, rows in self._plan.shards():
            size = sum(len(v) for row in rows for v in row.content.values() if isinstance(v, bytes))
            if size > _PICTURES:
                raise OptionError(
                    f"the pictures within the rows of shard {number} have {size:,} bytes; accepted: "
                    f"{_PICTURES:,} in a shard; take a smaller --shard-size"
                )
            self._open[number] = shard = Shard(run.root, number, rows, run.task, run.form)
            self._advance(len(rows) - len(shard.missing))
            bad = [row for row in rows if row.problem is not None and row.number in shard.missing]
            found = list(batches_of(number, rows, run.batch_size, shard.missing))
            self._add(number, [failure(row, row.problem or "") for row in bad])
            yield from found

    def add(self, batch: Batch, results: Sequence[Result]) -> None:
        """Write the results of a batch down."""
        self._add(batch.shard, results)

    def _add(self, number: int, results: Sequence[Result]) -> None:
        shard = self._open[number]
        if results:
            shard.add(results)
            self._advance(len(results))
        if not shard.missing:
            shard.finish()
            del self._open[number]

    def close(self) -> None:
        """Let go of all files."""
        for shard in self._open.values():
            shard.close()


def batches_of(number: int, rows: Sequence[Row], size: int, missing: set[int]) -> Iterator[Batch]:
    """A shard's rows in batches of equal options, the same whatever is missing, of which those are left out
    of which nothing is. A batch that was split holds its missing rows only."""
    groups: dict[tuple[tuple[str, Any], ...], list[Row]] = {}
    for row in rows:
        if row.problem is None:
            groups.setdefault(row.options, []).append(row)
    for group in groups.values():
        for start in range(0, len(group), size):
            if left := tuple(row for row in group[start : start + size] if row.number in missing):
                yield Batch(number, left)
