"""Training by two processes: the same as by one, and restartable when one of them was killed."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bifrons import JanusPipeline
from bifrons.blocks.errors import OptionError, ResourceError
from bifrons.learn import distributed
from bifrons.learn.processes import launch

pytest.importorskip("peft")
from . import distributed_work as work
from .pretraining_work import pretrain

SCRIPT = str(Path(work.__file__))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of two processes: `killed`, in which one was killed after step 3; then, by others, the same one
    to its end, and `full` and `lora` without a stop."""
    folder = tmp_path_factory.mktemp("runs")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    # Without torchrun, which would end the other process: it must end by itself.
    common = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(folder), "die"],
            env={**common, "RANK": str(number), "LOCAL_RANK": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    first, second = (process.communicate(timeout=240)[1] for process in processes)
    assert processes[1].returncode == -9, second
    assert processes[0].returncode == 1
    assert "process 0 of 2 lost the connection to another one" in first
    assert [path.name for path in (folder / "killed" / "checkpoints").iterdir()] == ["step-2"]
    launch(2, [SCRIPT, str(folder), "finish"])
    return folder


def trained(folder: Path):
    return torch.load(folder / "trained.pt")


def test_a_killed_run_goes_on_bit_for_bit(folder) -> None:
    weights, figures = trained(folder / "killed")
    expected, whole_figures = trained(folder / "full")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert [f["step"] for f in figures] == [3, 4]
    timeless = [{k: v for k, v in f.items() if k != "seconds"} for f in (*figures, *whole_figures[2:])]
    assert timeless[:2] == timeless[2:]


@pytest.mark.parametrize("name", ["full", "lora"])
def test_two_processes_train_as_one_does(folder, name, tmp_path) -> None:
    weights, figures = trained(folder / name)
    run, alone = work.start(tmp_path / name, name == "lora"), []
    run.run(alone.append)
    expected = work.weights(run)
    assert weights.keys() == expected.keys()
    for one, other in zip(figures, alone, strict=True):
        assert {"image_loss", "text_loss", "norm"} <= one.keys()
        assert all(abs(one[key] - other[key]) < 1e-4 * other[key] for key in one if key != "seconds")
    # AdamW's first steps are of one size whatever the gradient's, so rounding shows where it is almost zero.
    start = work.weights(work.start(tmp_path / "start", name == "lora"))
    changed = torch.cat([(expected[key] - start[key]).flatten() for key in expected])
    errors = torch.cat([(expected[key] - weights[key]).flatten() for key in expected])
    assert errors.norm() < 0.01 * changed.norm()

    # What two processes have saved, one reads.
    again = work.start(folder / name, name == "lora")
    assert again.resume() == work.STEPS
    assert all(torch.equal(value, weights[key]) for key, value in work.weights(again).items())


def test_a_divided_model_is_saved_whole(folder) -> None:
    saved = JanusPipeline.from_pretrained(folder / "full" / "model", "cpu", progress=False).model
    weights, _ = trained(folder / "full")
    assert all(torch.equal(saved.get_parameter(n.removeprefix("model.")), w) for n, w in weights.items())


def test_a_failed_process_ends_the_others(tmp_path) -> None:
    program = "import os, time; os.environ['RANK'] == '1' and os.kill(os.getpid(), 9); time.sleep(60)"
    with pytest.raises(ResourceError, match="process 1 of 2 was killed by signal 9, and the others"):
        launch(2, ["-c", program])
    with pytest.raises(ResourceError, match=r"process 0 of 1 failed; it says why above"):
        launch(1, ["-c", "raise SystemExit(3)"])


def test_devices_of_several_processes(monkeypatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, said in ((None, "1 GPUs for at least 2 processes"), ("cuda:0", "accepted: cuda, cpu")):
        with pytest.raises(OptionError, match=said), distributed.joined(device):
            pass


def test_pretraining_sums_gradients(folder, tmp_path) -> None:
    first, second = (torch.load(folder / f"pretrained-{number}.pt") for number in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    for name, tensor in pretrain(tmp_path).state_dict().items():
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=2e-3)  # Muon computes in bfloat16
    assert len((folder / "pretrained" / "log.jsonl").read_text().splitlines()) == 20
