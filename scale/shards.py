"""A batch's output folder: its recipe, and the files of each shard.

    OUT/batch.json                  the recipe
    OUT/rows/00003.jsonl            a line for each row of shard 3, in order; with it the shard is finished
    OUT/pictures/00003/*.png        its pictures, as files
    OUT/shards/00003.tar            or in a tar of WebDataset: KEY.png and KEY.json of each row that is done
    OUT/shards/00003.parquet        or a Parquet file of those rows
    OUT/work/00003.spool            what is done of a shard in work
    OUT/failed.jsonl                at the end, the lines of rows that failed, if there are any

A shard holds a fixed number of rows in the order of the file, so that its bytes don't depend on who made it.
"""

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..blocks.errors import BifronsError
from ..eval.atomic_io import atomic_file, disk_errors, make_folder, read_lines, write_file
from .rows import Row
from .spool import Spool
from .tasks import Result, Task

FORMATS = ("files", "webdataset", "parquet")
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")
_GROUP = 64
"""Rows of a row group of Parquet, which are held in memory together."""


def is_finished(root: Path, number: int) -> bool:
    """Whether all of a shard's output is there."""
    return os.path.isfile(_rows_file(root, number))


def _rows_file(root: Path, number: int) -> Path:
    return root / "rows" / f"{number:05d}.jsonl"


def _pictures(root: Path, number: int) -> Path:
    return root / "pictures" / f"{number:05d}"


def key_of(row: Row) -> str:
    """The name of a row's files: its place in the source, and its id if that is fit for one."""
    plain = row.id != str(row.number + 1) and _PLAIN_ID.fullmatch(row.id)
    return f"{row.number + 1:08d}" + (f"-{row.id}" if plain else "")


class Shard:
    """A shard in work: its rows, and those that have no result yet. Only one process holds it."""

    def __init__(self, root: Path, number: int, rows: Sequence[Row], task: Task, form: str) -> None:
        """Open or begin it; what was done before is in its spool. Raises BifronsError."""
        self.number, self._root, self._task, self._form = number, root, task, form
        self._rows = {row.number: row for row in rows}
        self._spool = Spool(root / "work" / f"{number:05d}.spool")
        self.missing = self._rows.keys() - self._spool.numbers

    def add(self, results: Sequence[Result]) -> None:
        """Write results down; once none is missing, the shard's files. Raises BifronsError."""
        if self._form == "files":
            results = [self._as_file(result) for result in results]
        self._spool.append(results)
        self.missing -= {result.number for result in results}

    def _as_file(self, result: Result) -> Result:
        """A result whose picture is in a file."""
        if not result.png:
            return result
        path = make_folder(_pictures(self._root, self.number)) / f"{key_of(self._rows[result.number])}.png"
        write_file(path, result.png, durable=False)
        name = path.relative_to(self._root).as_posix()
        return Result(result.number, {**result.record, "file": name})

    def finish(self) -> int:
        """Write the files of a shard without missing rows; returns how many failed. Raises BifronsError."""
        if self._form == "webdataset":
            self._write_tar()
        elif self._form == "parquet":
            self._write_parquet()
        failed = 0
        target = _rows_file(self._root, self.number)
        make_folder(target.parent)
        with atomic_file(target) as stream:
            for result in self._spool.results():
                failed += "error" in result.record
                self._sync_picture(result)
                stream.write((json.dumps(result.record, ensure_ascii=False) + "\n").encode())
        with disk_errors(f"tidy {self._root}"):
            self._spool.remove()
        return failed

    def _sync_picture(self, result: Result) -> None:
        if name := result.record.get("file"):
            with disk_errors(f"write {self._root / name}"), (self._root / name).open("r+b") as stream:
                os.fsync(stream.fileno())

    def close(self) -> None:
        """Let go of a shard that isn't finished."""
        self._spool.close()

    def _done(self) -> Iterator[Result]:
        return (result for result in self._spool.results() if "error" not in result.record)

    def _target(self, suffix: str) -> Path:
        return make_folder(self._root / "shards") / f"{self.number:05d}{suffix}"

    def _write_tar(self) -> None:
        with atomic_file(self._target(".tar")) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
            for result in self._done():
                key = key_of(self._rows[result.number]).replace(".", "_")  # a key ends at its first dot
                record = json.dumps(result.record, ensure_ascii=False).encode()
                for suffix, content in (("png", result.png), ("json", record)):
                    if content:
                        member = tarfile.TarInfo(f"{key}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))

    def _write_parquet(self) -> None:
        pyarrow, parquet = import_pyarrow()
        schema = arrow_schema(self._task)
        with atomic_file(self._target(".parquet")) as stream, parquet.ParquetWriter(stream, schema) as writer:
            results = self._done()
            while group := list(islice(results, _GROUP)):
                rows = [{**result.record, "picture": result.png or None} for result in group]
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def import_pyarrow() -> tuple[Any, Any]:
    """The packages pyarrow and pyarrow.parquet. Raises BifronsError where they aren't installed."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise BifronsError("Parquet needs the package pyarrow: pip install 'bifrons[scale]'") from error
    return pyarrow, parquet


def arrow_schema(task: Task) -> Any:
    """The columns of a task's Parquet files, the same in all of them."""
    arrow, _ = import_pyarrow()
    kinds = {str: arrow.string(), int: arrow.int64(), float: arrow.float64(), bytes: arrow.binary()}
    kinds |= {object: arrow.string(), list: arrow.list_(arrow.string())}
    columns = {name: kinds[kind] for name, kind in {"id": str, **task.columns, **task.outputs}.items()}
    if "boxes" in columns:
        box = {"label": arrow.string(), "box": arrow.list_(arrow.int32())}
        columns["boxes"] = arrow.list_(arrow.struct(list(box.items())))
    return arrow.schema([("seed", arrow.uint64()), *columns.items()])


def remove_leftovers(root: Path, shards: Sequence[int]) -> None:
    """Remove the unfinished files that a killed process left. Raises BifronsError."""
    folders = [root, root / "rows", root / "shards", *(_pictures(root, number) for number in shards)]
    with disk_errors(f"tidy {root}"):
        for path in (path for folder in folders for path in folder.glob(".*.part")):
            path.unlink(missing_ok=True)


def collect_failed(root: Path, shards: int) -> tuple[int, int]:
    """Write failed.jsonl from the finished shards, or remove an older one if no row failed; returns how many
    rows there are and how many failed. Raises BifronsError."""
    rows = failed = 0
    target = root / "failed.jsonl"
    with atomic_file(target) as stream:
        for number in range(shards):
            for _, line in read_lines(_rows_file(root, number)):
                rows += 1
                if "error" in json.loads(line):
                    failed += 1
                    stream.write(line)
    with disk_errors(f"tidy {root}"):
        if not failed:
            target.unlink(missing_ok=True)
        shutil.rmtree(root / "work", ignore_errors=True)
    return rows, failed
