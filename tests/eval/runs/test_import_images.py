"""Folders that anybody painted, with all that can be wrong in them."""

import json
from pathlib import Path
from random import Random

import pytest
from bifrons.apps.cli.main import main
from bifrons.blocks.errors import BifronsError
from bifrons.eval.geneval.suites import to_jsonl
from bifrons.eval.runs.import_images import ImageSet, _samples, scan_folder
from bifrons.nano.world.renderer import to_pil
from bifrons.nano.world.sentences import KINDS, sample_case


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six prompts, one of each kind, two right pictures each."""
    root, rng = tmp_path / "painted", Random(5)
    for index, kind in enumerate(KINDS):
        case = sample_case(kind, rng)
        samples = root / f"{index:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(case.metadata))
        (samples.parent / "grid.png").write_bytes(b"")
        for number in range(2):
            to_pil(case.scene, 96).save(samples / f"{number:04d}.png")
    return root


def evaluate(folder: Path, run: Path, *more: str) -> int:
    return main(["eval", "import", str(folder), "-R", str(run), "--processes", "1", *more])


def test_a_clean_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(folder, tmp_path / "run") == 0
    assert "not scored" not in capsys.readouterr().err
    summary = json.loads((tmp_path / "run" / "summary.json").read_bytes())
    assert (summary["overall"], summary["images"], summary["not_scored"]) == (1.0, 12, [])
    assert (tmp_path / "run" / "report.html").is_file()


def test_an_odd_folder_is_told_row_by_row(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "00000" / "samples" / "0001.png").unlink()
    (folder / "00001" / "samples" / "0000.png").write_bytes(b"no picture")
    broken = folder / "00002" / "samples" / "0001.png"
    broken.write_bytes(broken.read_bytes()[:200])
    (folder / "00003" / "metadata.jsonl").write_text("{not json")
    (folder / "00004" / "metadata.jsonl").write_text('{"tag": "colors", "prompt": "a"}')
    (folder / "00005" / "samples" / "0000.png.tmp").write_bytes(b"")
    (folder / "00005" / "notes.txt").write_bytes(b"")
    (folder / "results").mkdir()
    (folder / "5").mkdir()
    assert evaluate(folder, tmp_path / "run") == 0
    messages = capsys.readouterr().err
    expected = {
        "00000/samples/0001.png": "missing",
        "00001/samples/0000.png": "",
        "00002/samples/0001.png": "",
        "00003/metadata.jsonl": "not JSON",
        "00003/samples/0000.png": "metadata can't be used",
        "00003/samples/0001.png": "metadata can't be used",
        "00004/metadata.jsonl": "include",
        "00004/samples/0000.png": "metadata can't be used",
        "00004/samples/0001.png": "metadata can't be used",
        "00005/samples/0000.png.tmp": "not part of the layout",
        "00005/notes.txt": "not part of the layout",
        "results": "not part of the layout",
        "5": "there already",
    }
    summary = json.loads((tmp_path / "run" / "summary.json").read_bytes())
    reasons = {item["filename"]: item["reason"] for item in summary["not_scored"]}
    assert reasons.keys() == expected.keys()
    for name, words in expected.items():
        assert words in reasons[name]
        assert f"not scored: {name}: " in messages
    scored = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [row["filename"] for row in scored] == [
        "00000/samples/0000.png",
        "00001/samples/0001.png",
        "00002/samples/0000.png",
        "00005/samples/0000.png",
        "00005/samples/0001.png",
    ]
    assert all(row["correct"] for row in scored)
    # A picture that is replaced is looked at anew, and the score told again follows.
    (folder / "00002" / "samples" / "0001.png").write_bytes(
        (folder / "00002" / "samples" / "0000.png").read_bytes()
    )
    assert evaluate(folder, tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_bytes())["images"] == 6


def test_a_suite_tells_missing_and_other_prompts(folder: Path, tmp_path: Path) -> None:
    rows = [json.loads((folder / f"{i:05d}" / "metadata.jsonl").read_text()) for i in range(6)]
    rows[2] = {**rows[2], "prompt": "something else"}
    found = scan_folder(folder, 2, [*rows, rows[0]])
    assert {item["filename"] for item in found.problems} == {
        "00002/metadata.jsonl",
        "00002/samples/0000.png",
        "00002/samples/0001.png",
        "00006",
    }
    assert len(found.images) == 10
    assert {item["filename"] for item in scan_folder(folder, 3).problems} == {
        f"{i:05d}/samples/0002.png" for i in range(6)
    }
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_bytes(to_jsonl([*rows, rows[0]]))
    assert evaluate(folder, tmp_path / "run", "--prompts", str(prompts)) == 0
    assert len(json.loads((tmp_path / "run" / "summary.json").read_bytes())["not_scored"]) == 4


def test_refusals(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BifronsError, match="GenEval's layout"):
        scan_folder(tmp_path / "absent")
    with pytest.raises(BifronsError, match="can't be read"):
        _samples(tmp_path / "gone meanwhile", ImageSet())
    command = ["eval", "import", str(folder), "-R", str(tmp_path / "run")]
    assert main([*command, "--detector", "mask2former-official"]) == 1
    assert "--detector-weights" in capsys.readouterr().err
    path = folder / "00000" / "metadata.jsonl"
    path.write_text(path.read_text().replace(json.loads(path.read_text())["include"][0]["class"], "bench"))
    assert main(command) == 1  # not the world of shapes alone: GenEval's detector is meant
    assert "--detector-weights" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    for path in folder.glob("*/samples/*.png"):
        path.write_bytes(b"")
    assert main([*command, "--detector", "shapes", "--processes", "1"]) == 1
    assert "no picture could be read" in capsys.readouterr().err
    assert not (tmp_path / "run" / "results.jsonl").exists()
