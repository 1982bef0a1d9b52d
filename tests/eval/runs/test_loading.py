"""How `bifrons eval` loads its model, and what it prints."""

import json
from pathlib import Path

import pytest
from bifrons.apps.cli.main import main

RECIPE = ("--suite", "shapes", "--limit", "1", "--images-per-prompt", "1")


def test_loading_options_reach_the_processes_and_json_is_all(
    tmp_path: Path, janus_mini: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIFRONS_MODEL", str(janus_mini))
    command = ["eval", "run", "-R", str(tmp_path), "--processes", "1"]
    words = ["--quantize", "int8", "--device", "cpu", "--eager", "-q", "--json"]
    assert main([*command, *RECIPE, *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert json.loads(out) == {**summary, "folder": str(tmp_path)}
    assert (summary["recipe"]["quantize"], summary["recipe"]["model"]) == ("int8", str(janus_mini))
    assert "int8" in (tmp_path / "report.md").read_text()
    monkeypatch.delenv("BIFRONS_MODEL")
    assert main([*command, "--device", "cpu", "-q"]) == 0
    assert main([*command, "--quantize", "int4"]) == 1
    assert "quantize 'int8', not 'int4'" in capsys.readouterr().err
    assert main([*command, "--device-map", "auto", "--device", "cpu"]) == 2
    assert "accepted: one of them" in capsys.readouterr().err
    assert main([*command, "--revision", "main"]) == 2
    assert "--revision needs the name of one model" in capsys.readouterr().err


def test_a_rank_by_hand_prints_one_object_too(
    tmp_path: Path, janus_mini: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "eval",
        "run",
        "-R",
        str(tmp_path),
        "-m",
        str(janus_mini),
        *RECIPE,
        "--device",
        "cpu",
        "-q",
        "--json",
    ]
    assert (
        main([*words, "--images-per-prompt", "2", "--batch-size", "1", "--rank", "0", "--world-size", "2"])
        == 0
    )
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path)}
