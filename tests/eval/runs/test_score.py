"""From a file of detections to results.jsonl and summary.json."""

import gzip
import json
import logging
from pathlib import Path

import pytest
from bifrons.blocks.errors import BifronsError
from bifrons.eval.geneval.scoring import format_table, intervals, results_row, score_row, summarize
from bifrons.eval.runs.score import score_file

CASES = Path(__file__).parents[2] / "data" / "geneval" / "cases.jsonl.gz"


def case_lines() -> list[bytes]:
    return gzip.decompress(CASES.read_bytes()).splitlines(keepends=True)


def test_all_cases(tmp_path):
    summary = score_file(CASES, tmp_path / "new" / "out" / "results.jsonl")
    rows = [json.loads(line) for line in case_lines()]
    expected = [results_row(row, score_row(row)) for row in rows]
    written = (tmp_path / "new" / "out" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == expected
    assert (summary.kinds, summary.overall) == (summarize(expected).kinds, summarize(expected).overall)
    assert summary.intervals == intervals(expected)
    digest = json.loads((tmp_path / "new" / "out" / "summary.json").read_text())
    assert (digest["images"], digest["prompts"], digest["not_scored"]) == (553, 553, [])
    assert digest["overall"] == summary.overall
    assert digest["overall_interval"] == list(summary.intervals["overall"])
    assert digest["kinds"]["counting"]["score"] == summary.kinds["counting"].correct / 80
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == [
        "results.jsonl",
        "summary.json",
    ]


def test_bad_lines_are_told_and_nothing_is_scored_for_them(tmp_path, caplog):
    good = case_lines()[:3]
    lost = json.loads(case_lines()[3])
    del lost["boxes"]
    halved = json.dumps(lost).encode() + b"\n"
    lines = [good[0], b"{broken\n", b"\n", halved, good[1], good[0], b"\xff\n", good[2]]
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"".join(lines))
    with caplog.at_level(logging.WARNING):
        summary = score_file(source, tmp_path / "out" / "results.jsonl")
    assert summary.images == 3
    assert [bad.line for bad in summary.bad_lines] == [2, 4, 6, 7]
    assert "not JSON" in summary.bad_lines[0].reason
    assert lost["filename"] in summary.bad_lines[1].reason
    assert "'boxes' is missing" in summary.bad_lines[1].reason
    assert "line 1 already" in summary.bad_lines[2].reason
    assert [text.split(" is not scored")[0][-6:] for text in caplog.messages] == [
        f"line {n}" for n in (2, 4, 6, 7)
    ]
    digest = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [bad["line"] for bad in digest["not_scored"]] == [2, 4, 6, 7]
    assert "NOT SCORED: 4 lines" in format_table(summary)


def test_a_failure_leaves_earlier_results_alone(tmp_path):
    source, out = tmp_path / "rows.jsonl.gz", tmp_path / "out"
    source.write_bytes(CASES.read_bytes())
    score_file(source, out / "results.jsonl")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    source.write_bytes(CASES.read_bytes()[:50_000])  # broken off
    with pytest.raises(BifronsError, match=r"after line [1-9]"):
        score_file(source, out / "results.jsonl")
    source.write_bytes(gzip.compress(b"{}\n[]\n"))
    with pytest.raises(BifronsError, match="no line could be scored; line 1"):
        score_file(source, out / "results.jsonl")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_refused_files(tmp_path):
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    (tmp_path / "plain.jsonl.gz").write_bytes(b"{}\n")
    (tmp_path / "rows.json").write_bytes(b"{}\n")
    cases = [("absent.jsonl", "can't be read"), ("empty.jsonl", "empty"), ("plain.jsonl.gz", "can't be read")]
    for name, message in [*cases, ("rows.json", "unknown kind")]:
        with pytest.raises(BifronsError, match=message):
            score_file(tmp_path / name, tmp_path / "out" / "results.jsonl")
    assert not (tmp_path / "out").exists()
    (tmp_path / "results.jsonl").write_bytes(case_lines()[0])
    with pytest.raises(BifronsError, match="its own results"):
        score_file(tmp_path / "results.jsonl", tmp_path / "results.jsonl")
    with pytest.raises(BifronsError, match=r"ends in \.jsonl"):
        score_file(CASES, tmp_path / "rows.json")
