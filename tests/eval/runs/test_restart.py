"""A run that is killed again and again ends as one that never was; nothing is painted twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bifrons.apps.cli.main import main
from bifrons.blocks.errors import BifronsError
from bifrons.eval.runs.generate import generate_images
from bifrons.eval.runs.ranks import Ranks
from bifrons.eval.runs.record import read_stages
from bifrons.eval.runs.run_dir import open_run

RECIPE = ["--suite", "shapes", "--limit", "6", "--images-per-prompt", "2", "--batch-size", "3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, janus_mini: Path) -> Path:
    """A run that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole") / "run"
    command = ["eval", "run", "-R", str(root), "-m", str(janus_mini), "--device", "cpu", *RECIPE]
    assert main([*command, "--processes", "1"]) == 0
    return root


def painted(root: Path) -> dict[str, int]:
    """When each finished picture was written, in nanoseconds."""
    return {str(path): path.stat().st_mtime_ns for path in root.glob("images/*/samples/*.png")}


def kill_in_the_middle(command: list[str], root: Path, more: int) -> None:
    before = len(painted(root))
    log = root.with_name("log")
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    while len(painted(root)) < before + more:
        assert process.poll() is None, log.read_text()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_and_resumed_by_another_number_of_processes(
    whole: Path, tmp_path: Path, janus_mini: Path
) -> None:
    root = tmp_path / "run"
    arguments = ["eval", "run", "-R", str(root), "-m", str(janus_mini), "--device", "cpu", *RECIPE]
    seen: dict[str, int] = {}
    for processes, more in (("2", 2), ("1", 2)):
        command = [sys.executable, "-m", "bifrons.apps.cli.main", *arguments, "--processes", processes]
        kill_in_the_middle(command, root, more)
        now = painted(root)
        assert len(now) < 12, "it was not killed in the middle"
        assert {path: now[path] for path in seen} == seen
        seen = now
    assert main([*arguments, "--processes", "1"]) == 0
    end = painted(root)
    assert len(end) == 12
    assert {path: end[path] for path in seen} == seen, "a finished picture was painted again"
    for name in ("results.jsonl", "summary.json", "detections.jsonl"):
        assert (root / name).read_bytes() == (whole / name).read_bytes()
    for path in whole.glob("images/*/samples/*.json"):
        other = json.loads((root / path.relative_to(whole)).read_bytes())
        assert other == json.loads(path.read_bytes())
    assert list(root.rglob(".*")) == []
    assert read_stages(root)["painting"].pictures >= len(seen)  # those of killed processes among them


def test_ranks_by_hand_share_the_work_whenever_they_start(
    whole: Path, tmp_path: Path, janus_mini: Path
) -> None:
    arguments = ["eval", "generate", "-R", str(tmp_path), "-m", str(janus_mini), "--device", "cpu", *RECIPE]
    assert main([*arguments, "--rank", "1", "--world-size", "2"]) == 0
    run = open_run(tmp_path)
    batches = run.batches()
    assert [bool(run.unfinished(batch)) for batch in batches] == [i % 2 == 0 for i in range(len(batches))]
    first = painted(tmp_path)
    assert generate_images(run, "cpu", processes=1, ranks=Ranks(0, 2)) == 6
    assert generate_images(run, "cpu", processes=1) == 0
    assert first.items() <= painted(tmp_path).items()
    same = open_run(whole)
    assert [run.sha256(p) for p in run.image_keys()] == [same.sha256(p) for p in same.image_keys()]


def test_the_last_of_ranks_by_hand_scores(
    tmp_path: Path, janus_mini: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", "run", "-R", str(tmp_path), "-m", str(janus_mini), "--device", "cpu", *RECIPE]
    arguments += ["--processes", "1", "--world-size", "2"]
    assert main([*arguments, "--rank", "1"]) == 0
    assert "the rank that ends last" in capsys.readouterr().err
    assert not (tmp_path / "results.jsonl").exists()
    assert main([*arguments, "--rank", "0"]) == 0
    assert "the rank that ends last" not in capsys.readouterr().err
    assert (tmp_path / "results.jsonl").exists()
    assert (tmp_path / "report.html").exists()
    assert main([*arguments[:-2], "--rank", "0"]) == 2


def test_the_second_of_two_runs_in_one_folder_is_refused(
    tmp_path: Path, janus_mini: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", "run", "-R", str(tmp_path), "-m", str(janus_mini), "--device", "cpu", *RECIPE]
    command = [sys.executable, "-m", "bifrons.apps.cli.main", *arguments, "--processes", "1"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not painted(tmp_path):
        assert first.poll() is None
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)
    try:
        assert main([*arguments, "--processes", "1"]) == 1
        assert main(["eval", "generate", "-R", str(tmp_path), "--rank", "0", "--world-size", "2"]) == 1
    finally:
        first.send_signal(signal.SIGCONT)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert all(f"another process works in {tmp_path}" in error for error in errors)
    assert first.wait(120) == 0
    assert len(painted(tmp_path)) == 12


@pytest.mark.parametrize("left", [b"", b"\n", b"\0" * 80])
def test_an_empty_metadata_file_is_written_again(whole: Path, left: bytes) -> None:
    path = next(whole.glob("images/*/metadata.jsonl"))
    content = path.read_bytes()
    path.write_bytes(left)
    assert generate_images(open_run(whole), "cpu", processes=1) == 0
    assert path.read_bytes() == content
    path.write_bytes(content.replace(b'"prompt"', b'"Prompt"'))
    with pytest.raises(BifronsError, match="holds another prompt"):
        generate_images(open_run(whole), "cpu", processes=1)
    path.write_bytes(content)


def test_looking_goes_on_after_a_torn_line(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = (whole / "results.jsonl").read_bytes()
    lines = (whole / "detections.jsonl").read_bytes().splitlines(keepends=True)
    (whole / "detections").mkdir()
    (whole / "detections" / "part-1-1.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:100])
    (whole / "detections.jsonl").unlink()
    assert main(["eval", "score", "-R", str(whole)]) == 1
    assert "no detections for 7 of 12 pictures" in capsys.readouterr().err
    assert main(["eval", "detect", "-R", str(whole), "--processes", "1"]) == 0
    assert (whole / "detections.jsonl").read_bytes() == b"".join(lines)
    assert main(["eval", "score", "-R", str(whole)]) == 0
    assert (whole / "results.jsonl").read_bytes() == results
