"""`bifrons batch`: rows in, results out, each once, whatever dies meanwhile."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import pytest
from bifrons.scale.batch import BatchRun
from bifrons.scale.local import LocalPool
from bifrons.scale.models import ModelChoice
from bifrons.scale.rows import Source, row_seed
from bifrons.scale.tasks import Paint
from PIL import Image

ROWS = 12


def prompts(path: Path) -> Path:
    """Rows with three different settings, seeds of their own and from their ids, and one that is bad."""
    lines = []
    for number in range(ROWS):
        row = {"id": f"row-{number}", "prompt": f"{number} red stars", "temperature": 1 - number % 3 / 4}
        lines.append(json.dumps(row if number % 5 else {**row, "seed": number, "guidance_scale": 2}))
    path.write_text("\n".join([*lines, '{"id": "bad", "prompt": " "}']) + "\n")
    return path


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory, janus_mini: Path) -> Callable[[str], BatchRun]:
    task = Paint(ModelChoice("janus", str(janus_mini), "float32"))
    folder = tmp_path_factory.mktemp("batch")
    source = Source(prompts(folder / "prompts.jsonl"), task.columns, task.check, 0)

    def make(name: str) -> BatchRun:
        return BatchRun(folder / name, source, task, "webdataset", shard_size=7, batch_size=2)

    return make


@pytest.fixture(scope="module")
def alone(make_run) -> dict[str, bytes]:
    """What one worker makes."""
    run = make_run("alone")
    assert work(run, 1) == 0
    return content(run.root)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def work(run: BatchRun, workers: int, kills: int = 0) -> int:
    """Do a run; at random moments `kills` workers are killed. Returns how many died."""
    plan, finished, rng = run.begin(), 0, random.Random(7)
    moments = sorted(rng.sample(range(1, ROWS - 3), kills))
    pool = LocalPool(run.task, ["cpu"] * workers, 1)

    def advance(number: int) -> None:
        nonlocal finished
        finished += number
        while moments and finished >= moments[0]:
            moments.pop(0)
            os.kill(rng.choice(pool.pids), signal.SIGKILL)

    try:
        died = plan.work(pool, advance)
    finally:
        pool.close()
    assert plan.close() == (ROWS + 1, 1)
    assert finished == plan.rows_to_do
    return died


def test_outputs_are_those_of_one_worker_though_three_of_two_are_killed(make_run, alone) -> None:
    run = make_run("killed")
    assert 1 <= work(run, 2, kills=3) <= 3  # a kill of a worker that had just died is none
    assert content(run.root) == alone
    lines = [json.loads(line) for name in alone if name[:5] == "rows/" for line in alone[name].splitlines()]
    assert [line["id"] for line in lines] == [*(f"row-{number}" for number in range(ROWS)), "bad"]
    members = {}
    for name in ("00000", "00001"):
        with tarfile.open(run.root / f"shards/{name}.tar") as tar:
            members |= {member.name: cast(IO[bytes], tar.extractfile(member)).read() for member in tar}
    pictures = [content for name, content in members.items() if name.endswith(".png")]
    assert len(set(pictures)) == ROWS
    assert Image.open(io.BytesIO(members["00000002-row-1.png"])).info["seed"] == str(row_seed(0, "row-1"))
    assert json.loads(members["00000006-row-5.json"])["seed"] == 5
    assert json.loads(alone["failed.jsonl"])["error"].startswith("the prompt is ' '")


def test_a_killed_command_goes_on(make_run, alone, janus_mini: Path) -> None:
    """The whole command, killed as soon as some rows are done; its workers end with it."""
    run = make_run("again")
    words = [run.source.path, "-o", run.root, "-m", janus_mini, "--format", "webdataset", "--shard-size", 7]
    words = ["batch", "paint", *words, "--batch-size", 2, "--workers", 2]
    command = [sys.executable, "-m", "bifrons", *map(str, words)]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not any(path.stat().st_size for path in run.root.glob("work/*.spool")):
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    first.wait()
    plan = run.begin()
    assert plan.rows_to_do > 0
    assert work(run, 1) == 0
    assert content(run.root) == alone


def test_a_ray_cluster_that_loses_a_worker_makes_the_same(
    make_run, alone, janus_mini: Path, tmp_path
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'bifrons[scale]'")
    run = make_run("ray")
    program = Path(__file__).with_name("ray_work.py")
    command = [sys.executable, program, run.source.path, janus_mini, run.root]
    home = {**os.environ, "HOME": str(tmp_path)}  # where Ray writes a token
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=home)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-3:] == ["1", str(ROWS + 1), "1"]  # workers that died, rows, rows that failed
    assert content(run.root) == alone


def test_a_cluster_that_does_not_answer_is_named(bifrons_main, capsys, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'bifrons[scale]'")
    rows, output = prompts(tmp_path / "rows.jsonl"), tmp_path / "out"
    words = ["batch", "paint", rows, "-o", output, "--ray"]
    assert bifrons_main(*words, "127.0.0.1:1") == 1
    assert "no Ray cluster answers at 127.0.0.1:1: Connection refused" in capsys.readouterr().err
    assert bifrons_main(*words, "http://cluster") == 2
    assert "accepted: auto, or HOST:PORT" in capsys.readouterr().err
    assert bifrons_main(*words, "auto", "--device", "cpu") == 2
    assert "neither --device nor --device-map" in capsys.readouterr().err
    assert not output.exists()
