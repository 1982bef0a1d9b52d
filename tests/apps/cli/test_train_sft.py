"""`bifrons train sft`: its folder, what it says of bad rows, and a run that goes on where it was stopped."""

import json
import shutil
from pathlib import Path

import pytest
from bifrons import JanusPipeline
from bifrons.learn import checkpoints
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("peft")
COLORS = ("red", "green", "blue", "white", "black", "orange", "purple", "pink")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of eight captioned pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for color in COLORS:
        Image.new("RGB", (64, 48), color).save(folder / f"{color}.png")
        (folder / f"{color}.txt").write_text(f"a {color} wall")
    return folder


@pytest.fixture
def train(bifrons_main, capsys, janus_mini):
    """The exit status of a small run, what it prints as JSON, and its errors."""

    def run(data: Path, folder: Path, *words: object) -> tuple[int, dict, str]:
        common = ("-m", janus_mini, "--device", "cpu", "--steps", 4, "--batch-size", 2, "--save-every", 2)
        status = bifrons_main("train", "sft", "--data", data, "-o", folder, "--json", *common, *words)
        printed = capsys.readouterr()
        return status, json.loads(printed.out or "{}"), printed.err

    return run


LORA = ("--lora", 2, "--learning-rate", "1e-2", "--sample-every", 0)


def test_an_adapter_with_its_report_and_samples(train, pictures, tmp_path, janus_mini) -> None:
    run = tmp_path / "run"
    words = (*LORA[:4], "--sample-every", 2, "--sample", "a red & blue wall", "--validation", 0.25)
    status, found, _ = train(pictures, run, *words)
    assert status == 0
    assert (found["steps"], found["rows"], found["bad_rows"]) == (4, 6, 0)
    assert found["after"]["image_loss"] < found["before"]["image_loss"]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert "| image tokens |" in (run / "report.md").read_text()
    assert [path.name for path in sorted((run / "samples").iterdir())] == [
        f"step-{step}-0.png" for step in (0, 2, 4)
    ]
    page = (run / "samples.html").read_text()
    assert "a red &amp; blue wall" in page
    assert page.count("<img") == 3
    assert not (run / "bad-rows.jsonl").read_text()
    pipe = JanusPipeline.from_pretrained(janus_mini, "cpu", progress=False)
    pipe.load_adapter(found["result"])
    assert list(pipe.adapters) == ["adapter"]

    # The same command finds its result; other settings are another run's.
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    status, again, said = train(pictures, run, *words)
    assert status == 0
    assert "is there already" in said
    assert again["after"] == found["after"]
    status, found, _ = train(pictures, run, *words, "--seed", 7)
    assert status == 2
    assert "seed 0, not 7" in found["error"]
    same = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all((weights[name] == same[name]).all() for name in weights)


def test_a_stopped_run_goes_on_to_the_same_bits(train, pictures, tmp_path, monkeypatch) -> None:
    assert train(pictures, tmp_path / "whole", *LORA)[0] == 0
    save = checkpoints.save

    def stop(folder, step, *more) -> None:
        save(folder, step, *more)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", stop)
    status, found, _ = train(pictures, tmp_path / "parts", *LORA)
    assert status == 130
    assert "the same command goes on" in found["error"]
    monkeypatch.setattr(checkpoints, "save", save)
    log = tmp_path / "parts" / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 3, "image_loss": 1.0}\n{"step": 4, "im')  # after a kill -9
    assert train(pictures, tmp_path / "parts", *LORA)[0] == 0
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4]
    whole, parts = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "parts")
    )
    assert all((whole[name] == parts[name]).all() for name in whole)


def test_all_weights_give_a_model_folder(train, pictures, tmp_path) -> None:
    status, found, _ = train(pictures, tmp_path / "run", "--sample-every", 0, "--learning-rate", "1e-3")
    assert status == 0
    assert Path(found["result"]).name == "model"
    pipe = JanusPipeline.from_pretrained(found["result"], "cpu", progress=False)
    assert pipe.generate("a wall", seed=1, output_type="codes").shape == (1, pipe.model.config.num_codes)


def test_bad_rows_stop_the_run_or_are_left_out(train, pictures, tmp_path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "red.png").write_bytes(b"no picture")
    (data / "blue.txt").write_text(" ")
    (data / "pink.txt").unlink()
    status, found, said = train(data, tmp_path / "run", *LORA)
    assert status == 1
    assert "3 rows can't be used" in found["error"]
    assert sorted(fault["where"] for fault in found["bad_rows"]) == ["blue.png", "pink.png", "red.png"]
    assert said.count("bad row: ") == 3
    assert not (tmp_path / "run" / "log.jsonl").exists()
    status, found, _ = train(data, tmp_path / "run", *LORA, "--on-bad-rows", "skip")
    assert status == 0
    assert (found["rows"], found["bad_rows"]) == (5, 3)
    assert len((tmp_path / "run" / "bad-rows.jsonl").read_text().splitlines()) == 3


def test_replay_is_painted_once(train, pictures, tmp_path, monkeypatch) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red wall\n\na blue wall\n")
    words = (*LORA, "--replay", 0.5, "--replay-prompts", prompts, "--replay-pictures", 3)
    assert train(pictures, tmp_path / "run", *words)[1]["rows"] == 11
    shutil.rmtree(tmp_path / "run" / "adapter")
    monkeypatch.setattr(JanusPipeline, "generate", lambda *_, **__: pytest.fail("painted again"))
    assert train(pictures, tmp_path / "run", *words)[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--image-head",), "--lora"),
        (("--lora", 0), "rank"),
        (("--batch-size", 0), "batch_size"),
        (("--validation", 1), "validation"),
        (("--replay", 0.5), "--replay-prompts"),
        (("--eval-limit", 5), "--eval SUITE"),
        (("--unconditional", 2), "unconditional"),
        (("--from-scratch", "--lora"), "without --lora"),
        (("--from-scratch",), "is for text models"),
        (("--adapter", ".", "--lora"), "without --lora"),
    ],
)
def test_refused_before_a_model_is_loaded(words, said, train, pictures, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("bifrons.apps.cli.train_work.load_pipeline", lambda *_, **__: pytest.fail("loaded"))
    status, found, _ = train(pictures, tmp_path / "run", *words)
    assert status == 2
    assert said in found["error"]
    assert not (tmp_path / "run").exists()


def test_other_folders_and_data_are_refused(train, pictures, tmp_path) -> None:
    status, found, _ = train(tmp_path / "missing", tmp_path / "run", *LORA)
    assert status == 2
    assert "missing" in found["error"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    status, found, _ = train(pictures, tmp_path / "full", *LORA)
    assert status == 2
    assert "other files" in found["error"]
    status, found, _ = train(f"{pictures}:-1", tmp_path / "run", *LORA)
    assert status == 2
    assert "weight" in found["error"]
