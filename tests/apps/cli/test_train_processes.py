"""`bifrons train` on two processes: the same results as on one, one voice, and an end in words."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bifrons.apps.cli.long_work import StoppedError
from bifrons.blocks.errors import OptionError, ResourceError
from PIL import Image

pytest.importorskip("peft")
from bifrons.learn.distributed import OtherProcessError

COMMAND = [sys.executable, "-m", "bifrons", "train"]
ROOM = Path(__file__).parents[4]
"""What holds the package."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of six captioned pictures, and a damaged one."""
    folder = tmp_path_factory.mktemp("pictures")
    for color in ("red", "green", "blue", "white", "black", "pink"):
        Image.new("RGB", (64, 48), color).save(folder / f"{color}.png")
        (folder / f"{color}.txt").write_text(f"a {color} wall")
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "bad.txt").write_text("a bad wall")
    return folder


@pytest.fixture
def words(pictures, janus_mini) -> list[str]:
    """A small run of supervised fine-tuning of all weights."""
    data = ["sft", "--data", str(pictures), "--on-bad-rows", "skip", "-m", str(janus_mini), "--json"]
    sizes = ["--batch-size", "2", "--rows-at-once", "1", "--learning-rate", "1e-3"]
    return [*data, *sizes, "--validation", "0.25", "--device", "cpu"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOM), "OMP_NUM_THREADS": "1"}


def start(*command: object, folder: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*map(str, command)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def figures(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: one[name] for name in one if "seconds" not in name} for one in lines]


def assert_close(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_two_processes_of_torchrun_do_what_one_does(words, tmp_path, bifrons_main, capsys) -> None:
    """The other tests start them by --gpus."""
    steps = ["--steps", "3", "--sample-every", "2", "--save-every", "2", "--sample", "a wall"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    two = start(*torchrun, *COMMAND[1:], *words, *steps, "-o", tmp_path / "two")
    assert bifrons_main("train", *words, *steps, "-o", tmp_path / "one") == 0
    alone = json.loads(capsys.readouterr().out)
    out, err = two.communicate(timeout=240)
    assert two.returncode == 0, err
    found = json.loads(out)
    assert (found["rows"], found["bad_rows"]) == (alone["rows"], alone["bad_rows"]) == (5, 1)
    assert found["trained_parameters"] == alone["trained_parameters"]
    assert_close([found["before"], found["after"]], [alone["before"], alone["after"]])
    assert err.count("bad row: bad.png") == 1
    assert "warning" not in err
    assert_close(figures(tmp_path / "two"), figures(tmp_path / "one"))
    names = [path.name for path in sorted((tmp_path / "two" / "samples").iterdir())]
    assert names == ["step-0-0.png", "step-2-0.png", "step-3-0.png"]
    start_pictures = [tmp_path / run / "samples" / "step-0-0.png" for run in ("one", "two")]
    assert start_pictures[0].read_bytes() == start_pictures[1].read_bytes()
    files = [
        sorted(str(path.relative_to(tmp_path / run)) for path in (tmp_path / run / "model").rglob("*"))
        for run in ("one", "two")
    ]
    assert files[0] == files[1]
    assert len((tmp_path / "two" / "bad-rows.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OptionError("too many"), 2, "process 1 of 2: too many\n"),
        (ResourceError("too large"), 1, "process 1 of 2: too large\n"),
        (OtherProcessError("process 0 failed"), 0, ""),
        (StoppedError("terminated; nothing is done", 143), 143, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_other_processes_speak_of_their_own_failures_only(
    error, status, said, bifrons_main, monkeypatch, capsys, words, tmp_path
) -> None:
    def fail(args) -> int:
        raise error

    monkeypatch.setattr("bifrons.apps.cli.train_sft.sft", fail)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert bifrons_main("train", *words, "-o", tmp_path) == status
    assert capsys.readouterr() == ("", said)


REWARD = """
import os, signal
from pathlib import Path

def bright(prompts, pictures):
    if os.environ.get("RANK") == "1" and any(Path("run/checkpoints").glob("step-1")):
        os.kill(os.getpid(), signal.SIGKILL)
    return [sum(picture.convert("L").tobytes()) / 1e5 for picture in pictures]
"""


def test_a_killed_process_ends_training_by_rewards_which_one_goes_on_with(
    janus_mini, tmp_path, monkeypatch, bifrons_main, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "processes_reward.py").write_text(REWARD)
    (tmp_path / "p.txt").write_text("a red star\ntwo hearts\na cat\n")
    words = ["grpo", "-m", str(janus_mini), "--device", "cpu", "--prompts", "p.txt", "--json"]
    words += ["--reward", "processes_reward:bright", "--steps", "2", "--prompts-per-step", "3"]
    words += ["--group-size", "3", "--rows-at-once", "2", "--save-every", "1", "--learning-rate", "1e-3"]
    two = start(*COMMAND, *words, "-o", "run", "--gpus", 2, folder=tmp_path)
    assert bifrons_main("train", *words, "-o", "whole") == 0
    capsys.readouterr()
    out, err = two.communicate(timeout=240)
    assert two.returncode == 1
    said = json.loads(out.splitlines()[-1])
    assert "process 1 of 2 was killed by signal 9" in said["error"]
    assert said["step"] == 1
    assert "Traceback" not in err
    assert bifrons_main("train", *words, "-o", "run") == 0
    assert_close(figures(tmp_path / "run"), figures(tmp_path / "whole"))
    parts, whole = (sorted((tmp_path / run / "samples").glob("step-0-*.png")) for run in ("run", "whole"))
    assert len(parts) == 3
    assert [path.read_bytes() for path in parts] == [path.read_bytes() for path in whole]


def test_ctrl_c_ends_all_processes(words, tmp_path) -> None:
    run = start(
        *COMMAND, *words, "--steps", 100_000, "--sample-every", 0, "-o", tmp_path / "run", "--gpus", 2
    )
    log = tmp_path / "run" / "log.jsonl"
    last = time.monotonic() + 200
    while not (log.exists() and log.stat().st_size) and run.poll() is None and time.monotonic() < last:
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    try:
        out, err = run.communicate(timeout=60)
    finally:
        run.terminate()
    assert run.returncode == 130
    assert "interrupted; the same command goes on from the last checkpoint" in json.loads(out)["error"]
    assert len(err.splitlines()) == 2  # the damaged row, and the end
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--gpus", "3"), "batch_size is 2; accepted: a multiple of the 3 processes"),
        (("--gpus", "0"), "gpus is 0; accepted"),
    ],
)
def test_numbers_of_processes(words, more, said, tmp_path, bifrons_main, capsys) -> None:
    assert bifrons_main("train", *words, "-o", tmp_path / "run", *more) == 2
    assert said in json.loads(capsys.readouterr().out)["error"]
