"""What a run records of itself, and what its summary says without anything else."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from bifrons.apps.cli.main import main
from bifrons.eval.geneval.breakdown import breakdown
from bifrons.eval.runs.record import STAGES, read_stages, recorded, software
from bifrons.nano.world.renderer import to_pil
from bifrons.nano.world.sentences import sample_case


def test_time_is_the_union_of_what_the_processes_took(tmp_path: Path) -> None:
    lines = [("painting", 10.0, 20.0, 6), ("painting", 15.0, 25.0, 6), ("painting", 40.0, 45.0, 3)]
    content = [
        {"stage": stage, "start": start, "end": end, "pictures": number, "device": "cpu (x)"}
        for stage, start, end, number in lines
    ]
    (tmp_path / STAGES).write_text("".join(json.dumps(line) + "\n" for line in content) + '{"stage": "pain')
    found = read_stages(tmp_path)["painting"]
    assert (found.seconds, found.pictures, found.per_second) == (20.0, 15, 0.75)
    assert found.devices == ("cpu (x)",)
    assert found.ended == "1970-01-01T00:00:45+00:00"
    assert read_stages(tmp_path / "absent") == {}


def test_interrupted_work_is_recorded_too(tmp_path: Path) -> None:
    def work() -> None:
        with recorded(tmp_path, "looking", "cpu", 2) as report:
            report(7)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    found = read_stages(tmp_path)["looking"]
    assert found.pictures == 7
    assert found.devices[0].startswith("cpu (")
    assert found.devices[0].endswith(", 2 processes")


def test_a_killed_process_leaves_its_time_to_the_last_picture(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys, time\n"
        "from bifrons.eval.runs.record import recorded\n"
        "with recorded(pathlib.Path(sys.argv[1]), 'painting', 'cpu', 1) as report:\n"
        "    time.sleep(0.2); report(1); time.sleep(0.2); report(3); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == -9
    killed = read_stages(tmp_path)["painting"]
    assert killed.pictures == 3
    assert 0.4 <= killed.seconds < 30
    with recorded(tmp_path, "painting", "cpu", 1) as report:
        report(2)
    assert read_stages(tmp_path)["painting"].pictures == 5
    assert read_stages(tmp_path)["painting"].seconds >= killed.seconds


_KILLED_PARENT = """\
import os, pathlib, signal, sys, time
from bifrons.eval.runs.workers import run_workers

def worker(share, device, advance):
    if share == ["paints"]:
        advance(1)
        os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)

if __name__ == "__main__":
    run_workers(worker, ["paints", "waits"], 2, 2, "cpu", 1, "painting", pathlib.Path(sys.argv[1]))
"""


def test_what_a_process_has_finished_counts_though_its_parent_is_killed_at_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(_KILLED_PARENT)
    done = subprocess.run([sys.executable, str(program), str(tmp_path)], stderr=subprocess.DEVNULL)
    assert done.returncode == -9
    assert read_stages(tmp_path)["painting"].pictures == 1
    assert read_stages(tmp_path)["painting"].seconds > 0


def test_versions() -> None:
    assert {"python", "bifrons", "torch", "transformers", "platform"} <= software().keys()


def test_a_summary_is_whole_by_itself(tmp_path: Path) -> None:
    """Of an import: the model's name and note stay when it is evaluated again without them."""
    for index, kind in enumerate(("colors", "position")):
        case = sample_case(kind, Random(index))
        samples = tmp_path / "in" / f"{index:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(case.metadata))
        to_pil(case.scene, 96).save(samples / "0000.png")
    run = tmp_path / "run"
    command = ["eval", "import", str(tmp_path / "in"), "-R", str(run), "--processes", "1"]
    assert main([*command, "--model-name", "Painter 3", "--note", "guidance 4, 30 steps"]) == 0
    first = (run / "summary.json").read_bytes()
    assert main(command) == 0
    assert (run / "summary.json").read_bytes() == first
    summary = json.loads(first)
    assert (summary["model"], summary["note"], summary["kind"]) == (
        "Painter 3",
        "guidance 4, 30 steps",
        "import",
    )
    assert summary["detector"]["kind"] == "shapes"
    assert summary["options"]["threshold"] == 0.3
    assert "torch" in summary["software"]
    assert sum(cell["images"] for cell in summary["breakdown"]["relation"].values()) == 1
    for page in ((run / "report.md").read_text(), (run / "report.html").read_text()):
        assert "Painter 3" in page
        assert "guidance 4, 30 steps" in page
        assert "pictures in" in page
        assert (
            r"Painter 3 &amp; - &amp; -" in page or "Painter 3 & - & - & - & 1.00 & 1.00 & - & 1.00" in page
        )
    lines = (run / "prompts.csv").read_text().splitlines()
    assert lines[0] == "prompt_number,kind,prompt,correct,images,reasons"
    assert len(lines) == 3


def test_breakdown_counts_a_prompt_under_all_that_it_names() -> None:
    clauses = [
        {"class": "cup", "count": 1, "color": "red"},
        {"class": "cow", "count": 1, "position": ["above", 0]},
    ]
    rows = [
        {"tag": "position", "correct": correct, "metadata": json.dumps({"include": clauses[:count]})}
        for correct, count in ((True, 2), (False, 2), (True, 1))
    ]
    rows.append(
        {
            "tag": "counting",
            "correct": False,
            "metadata": json.dumps({"include": [{"class": "cow", "count": 4}]}),
        }
    )
    assert breakdown(rows) == {
        "class": {"cow": (1, 3, 2), "cup": (2, 3, 2)},
        "color": {"red": (2, 3, 2)},
        "relation": {"above": (1, 2, 1)},
        "count": {"4": (0, 1, 1)},
    }
