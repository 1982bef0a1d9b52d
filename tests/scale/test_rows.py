"""Rows of every kind of file, what is wrong with them in words, and the checkpoint; without a model."""

import errno
import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
from bifrons.blocks.errors import BifronsError
from bifrons.scale.batch import BatchRun, batches_of
from bifrons.scale.models import ModelChoice
from bifrons.scale.rows import Row, Source, check_rows, row_seed
from bifrons.scale.shards import Shard, arrow_schema
from bifrons.scale.spool import Spool
from bifrons.scale.tasks import Ask, Locate, Paint, Result, Task

from ..models import SHAPES_JANUS

MODEL = ModelChoice("janus", SHAPES_JANUS, "float32")
PAINT = Paint(MODEL, {"top_k": 5})


def read(path: Path, task: Task = PAINT) -> list[Row]:
    return list(Source(path, task.columns, task.check, 0).rows())


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_rows_of_all_kinds_of_files_are_the_same(tmp_path: Path) -> None:
    lines = (
        '{"id": "a", "prompt": "one, two", "seed": 3, "temperature": 1}\n\n{"prompt": "b", "top_k": null}\n'
    )
    paths = [written(tmp_path / "a.jsonl", "\ufeff" + lines)]
    paths.append(written(tmp_path / "a.csv", 'id,prompt,seed,temperature\na,"one, two",3,1\n,b,,\n\n'))
    paths.append(written(tmp_path / "a.tsv", "id\tprompt\tseed\ttemperature\na\tone, two\t3\t1\n\tb\t\t\n"))
    paths.append(tmp_path / "a.jsonl.gz")
    paths[-1].write_bytes(gzip.compress(lines.encode()))
    table = {"id": ["a", None], "prompt": ["one, two", "b"], "seed": [3, None], "temperature": [1, None]}
    paths.append(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table(table), paths[-1])
    content = {"prompt": "one, two", "negative_prompt": None}
    first = Row(0, "a", 3, content, (("temperature", 1.0), ("top_k", 5)))
    second = Row(1, "2", row_seed(0, "2"), {**content, "prompt": "b"}, (("top_k", 5),))
    for path in paths:
        assert read(path) == [first, second], path


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"prompt": "a"', "can't be read as JSON"),
        ("[1]", "accepted: an object"),
        ('{"prompt": " "}', "accepted: a text that is not empty"),
        ('{"seed": 1}', "the prompt is None"),
        ('{"prompt": "a", "guidence": 1}', "'guidence' is not known; accepted: id, seed, prompt"),
        ('{"prompt": "a", "temperature": "hot"}', "temperature is 'hot'"),
        ('{"prompt": "a", "seed": -1}', "seed is -1"),
        ('{"prompt": "a", "seed": 1.5}', "seed is 1.5"),
        ('{"prompt": "a", "id": "\\u001b"}', "id is "),
        ('{"prompt": "a", "id": true}', "id is True"),
        ('{"prompt": "a", "negative_prompt": "b", "guidance_scale": 1}', "works through guidance"),
    ],
)
def test_what_is_wrong_with_a_row(tmp_path: Path, row: str, problem: str) -> None:
    path = written(tmp_path / "rows.jsonl", '{"prompt": "good"}\n' + row)
    good, bad = read(path)
    assert good.problem is None
    assert problem in str(bad.problem)
    digests, found, count = check_rows(iter([good, bad]), path, 1)
    assert (len(digests), found, count) == (2, [bad], 2)


def test_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    def refused(name: str, text: str) -> str:
        path = written(tmp_path / name, text)
        with pytest.raises(BifronsError) as caught:
            check_rows(Source(path, PAINT.columns, PAINT.check, 0).rows(), path, 4)
        return str(caught.value)

    twice = '{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}'
    assert "row 2 has the id '1' of an earlier row" in refused("twice.jsonl", twice)
    assert "holds no rows" in refused("empty.jsonl", "\n")
    assert "no row that can be done; row 1: 'text' is not known" in refused("bad.csv", "text\na\nb\n")
    assert "names a column twice" in refused("double.csv", "prompt,prompt\na,b\n")
    assert "can't be read as CSV after line 1" in refused("quote.csv", 'prompt\n"a\n')
    assert "unknown kind; accepted: .jsonl" in refused("rows.txt", "a")
    assert "can't be read as Parquet" in refused("rows.parquet", "PAR1")
    cells = read(written(tmp_path / "cells.csv", "prompt,top_k\na,b\na,1,2\n"))
    assert [row.problem for row in cells] == [
        "top_k is 'b'; accepted: a number",
        "it has 3 cells, the header 2",
    ]


def test_pictures_of_rows(tmp_path: Path) -> None:
    ask, locate = Ask(MODEL, tmp_path, "what?"), Locate(MODEL, tmp_path)
    path = tmp_path / "rows.parquet"
    images = [
        {"bytes": b"png", "path": None},
        {"bytes": None, "path": "a.png"},
        {"bytes": None, "path": None},
    ]
    parquet.write_table(pyarrow.table({"image": images, "max_new_tokens": [3, None, None]}), path)
    first, second, third = read(path, ask)
    assert first.content == {"image": b"png", "question": "what?"}
    assert first.options == (("max_new_tokens", 3),)
    assert second.content["image"] == str(tmp_path / "a.png")
    assert "accepted: the name of a file, a data: URL or bytes" in str(third.problem)
    assert first.digest() != second.digest()
    (row,) = read(written(tmp_path / "a.jsonl", '{"image": "a.png"}'), locate)
    assert "the phrase is None" in str(row.problem)
    assert arrow_schema(locate).names == ["seed", "id", "image", "phrase", "boxes", "problems"]


def test_a_folder_of_another_run_is_refused(tmp_path: Path, janus_mini: Path) -> None:
    path = written(tmp_path / "rows.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n')
    task = Paint(ModelChoice("janus", str(janus_mini), "float32"))

    def begin(seed: int = 0, root: str = "run", size: int = 4) -> int:
        source = Source(path, task.columns, task.check, seed)
        return begun(BatchRun(tmp_path / root, source, task, "files", size, 4))

    def begun(run: BatchRun) -> int:
        return run.begin().rows_to_do

    assert begin() == begin() == 2
    with pytest.raises(
        BifronsError, match="is a run with another rows, seed; accepted: the same, or another"
    ):
        begin(seed=1)
    path.write_text('{"prompt": "a"}\n{"prompt": "c"}\n')
    with pytest.raises(BifronsError, match="is a run with another rows"):
        begin()
    written(tmp_path / "other.txt", "")
    with pytest.raises(BifronsError, match="holds something else than a run of `bifrons batch paint`"):
        begin(root=".")
    plan = BatchRun(tmp_path / "new", Source(path, task.columns, task.check, 0), task, "files", 1, 4).begin()
    path.write_text('{"prompt": "a"}\n{"prompt": "d"}\n')
    with pytest.raises(BifronsError, match="was changed while it was read"):
        list(plan.shards())


def test_batches_are_the_same_whatever_is_missing() -> None:
    rows = [Row(number, str(number), options=(("top_k", number % 2),)) for number in range(9)]
    rows.append(Row(9, "9", problem="bad"))
    batches = [[row.number for row in one.rows] for one in batches_of(0, rows, 2, set(range(9)))]
    assert batches == [[0, 2], [4, 6], [8], [1, 3], [5, 7]]
    assert [[row.number for row in one.rows] for one in batches_of(0, rows, 2, {4, 6, 7})] == [[4, 6], [7]]


def test_a_torn_checkpoint_loses_its_last_record(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "a.spool")
    spool.append([Result(4, {"id": "x"}, b"\x89PNG\n\n"), Result(2, {"id": "\u2028"})])
    spool.close()
    content = spool.path.read_bytes()
    for length in range(len(content)):
        spool.path.write_bytes(content[:length])
        torn = Spool(spool.path)
        assert torn.numbers <= {4}
        torn.append([Result(1, {"id": "new"}, b"png")])
        assert Result(1, {"id": "new"}, b"png") in list(torn.results())
        torn.close()
    spool.path.write_bytes(content[:-1] + b"?")
    whole = Spool(spool.path)
    assert list(whole.results()) == [Result(4, {"id": "x"}, b"\x89PNG\n\n")]
    whole.remove()
    assert not spool.path.exists()


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    rows = [Row(number, str(number)) for number in range(3)]
    shard = Shard(tmp_path, 0, rows, PAINT, "parquet")
    shard.add([Result(0, {"id": "0"}, b"png")])
    spool = shard._spool

    class Full:
        def write(self, content: memoryview) -> int:
            if len(content) < 30:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return file.write(content[:20])

        def truncate(self, size: int) -> None:
            file.truncate(size)

    file, spool._file = spool._file, Full()  # type: ignore[assignment]
    with pytest.raises(BifronsError, match="disk is full; what is finished is kept: free some space and run"):
        shard.add([Result(1, {"id": "1"}, b"png")])
    spool._file = file
    assert shard.missing == {1, 2}
    shard.close()
    again = Shard(tmp_path, 0, rows, PAINT, "parquet")
    assert again.missing == {1, 2}
    again.add([Result(1, {"id": "1", "error": "why"}), Result(2, {"id": "2", "seed": 2**64 - 1}, b"png 2")])
    assert again.finish() == 1
    table = parquet.read_table(tmp_path / "shards/00000.parquet").to_pylist()
    assert [(row["id"], row["seed"], row["picture"]) for row in table] == [
        ("0", None, b"png"),
        ("2", 2**64 - 1, b"png 2"),
    ]
    lines = (tmp_path / "rows/00000.jsonl").read_text().splitlines()
    assert [json.loads(line).get("error") for line in lines] == [None, "why", None]
