"""Hostile files of an evaluation: errors of ours, and nothing endless is read or waited for."""

import gzip
import io
import json
import os

import numpy as np
import pytest
from bifrons.apps.cli.images import read_codes
from bifrons.blocks.errors import BifronsError
from bifrons.eval.atomic_io import LINE_BYTES, read_json, read_lines
from bifrons.eval.geneval.compare import read_results
from bifrons.eval.geneval.suites import geneval_prompts, parse_metadata
from bifrons.eval.report.data import _results, _scores
from bifrons.eval.runs.detect import _complete_lines
from bifrons.eval.runs.import_images import rescan_import
from bifrons.eval.runs.score import score_file

DEEP = b"[" * 200_000
LINES = (
    DEEP,
    b'{"a": ' + b"1" * 5000 + b"}",
    b'{"a": NaN}',
    b'{"a": 1e999}',
    b"[1]",
    b"3",
    b"\xff\xfe{\x00}\x00",
)


def readers(tmp_path):
    return (
        lambda path: read_json(path),
        lambda path: list(_results(path)),
        lambda path: list(_complete_lines(path)),
        lambda path: read_results(path),
        lambda path: geneval_prompts(path),
        lambda path: score_file(path, tmp_path / "out.jsonl"),
        lambda path: read_codes(path),
    )


@pytest.mark.parametrize("number", range(7))
def test_hostile_lines(tmp_path, number):
    read = readers(tmp_path)[number]
    for line in LINES[:4] if number in (0, 6) else LINES:
        path = tmp_path / "a.jsonl"
        path.write_bytes(line + b"\n")
        with pytest.raises(BifronsError) as caught:
            read(path)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("number", range(7))
def test_files_that_are_no_regular_files(tmp_path, number):
    """None of them blocks or is read."""
    read, path = readers(tmp_path)[number], tmp_path / "a.jsonl"
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)):
        make(path)
        if number == 2:  # a stage's own file, which counts as absent
            assert read(path) == []
        else:
            with pytest.raises(BifronsError, match=r"can't be read|is a directory"):
                read(path)
        (os.rmdir if path.is_dir() else os.remove)(path)


def test_lines_without_an_end_are_not_read_whole(tmp_path, run_bounded):
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as stream:
        for _ in range(512):
            stream.write(bytes(1 << 20))
    with (tmp_path / "b.jsonl").open("wb") as stream:
        stream.truncate(20 << 30)
    code = """
from bifrons.eval.runs.score import score_file
for name in ("a.jsonl.gz", "b.jsonl"):
    try:
        score_file(Path(sys.argv[2]) / name, Path(sys.argv[2]) / "out.jsonl")
    except BifronsError as error:
        print(error)
"""
    printed = run_bounded(code, tmp_path, memory=350 << 20).splitlines()
    assert ["line 1 has more than" in line for line in printed] == [True, True]
    (tmp_path / "c.jsonl").write_bytes(b"a" * (LINE_BYTES - 1) + b"\nb")
    assert [number for number, _ in read_lines(tmp_path / "c.jsonl")] == [1, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"details": "[1]"},
        {"details": json.dumps({"dog": 1})},
        {"details": json.dumps({"dog": [[1, 2, 3, 4]]})},
        {"details": json.dumps({"dog": [["a"] * 5]})},
        {"details": 3},
        {"metadata": DEEP.decode()},
        {"tag": ["counting"]},
        {"correct": 1},
        {"filename": [1]},
    ],
)
def test_results_of_other_types(tmp_path, change):
    row = {"filename": "a", "tag": "counting", "prompt": "p", "reason": "", "correct": True}
    row |= {"details": json.dumps({"dog": [[1, 2, 3, 4, 0.5]]}), "metadata": "{}"}
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(row))
    assert len(list(_results(path))) == 1
    path.write_text(json.dumps(row | change))
    with pytest.raises(BifronsError, match="line 1 is no results row"):
        list(_results(path))


@pytest.mark.parametrize(
    "change", [{"overall": "a"}, {"overall_interval": [1]}, {"overall": 2}, {"kinds": [1]}]
)
def test_summaries_of_other_types(tmp_path, change):
    summary = {"overall": 0.5, "overall_interval": [0.4, 0.6], "images": 1, "prompts": 1, "kinds": {}}
    assert _scores(summary, tmp_path)[1].share == 0.5
    with pytest.raises(BifronsError, match="accepted: what `bifrons eval score` writes"):
        _scores(summary | change, tmp_path)


@pytest.mark.parametrize("content", [{}, {"source": [1]}, {"source": "a", "prompts": 3}])
def test_imports_of_other_types(content):
    with pytest.raises(BifronsError, match="no import's"):
        rescan_import(content)


def test_metadata_of_other_types():
    for line in LINES:
        with pytest.raises(BifronsError, match="line 3"):
            parse_metadata(line, "line 3")


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }", b"12345678"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"12345678"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", b"12345678"),
        npy("{'descr': [1], 'fortran_order': 3, 'shape': 'a'}"),
        npy("{'descr': "),
        npy("(" * 100),
        b"\x93NUMPY\x01\x00\xff\xff",
        b"\x93NUMPY\x09\x00",
        b"PK\x03\x04",
        b"",
    ],
)
def test_damaged_arrays_of_codes(tmp_path, content):
    (tmp_path / "codes.npy").write_bytes(content)
    with pytest.raises(BifronsError, match="can't be read as codes"):
        read_codes(tmp_path / "codes.npy")
    stream = io.BytesIO()
    np.save(stream, np.arange(6).reshape(2, 3))
    (tmp_path / "codes.npy").write_bytes(stream.getvalue())
    assert read_codes(tmp_path / "codes.npy") == ([0, 1, 2, 3, 4, 5], [2, 3], None)
