"""`bifrons train sft --eval`: the model and what became of it, on the same suite, in one report."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch
from bifrons import JanusPipeline
from bifrons.apps.cli import train_report
from bifrons.blocks.vocabulary import read_taught, write_taught

from ...models import SHAPES_JANUS


def test_both_models_are_evaluated_and_compared(tmp_path, monkeypatch) -> None:
    calls: list[list[str]] = []

    def evaluation(words: list[str]) -> str:
        calls.append(words)
        if words[0] == "compare":
            return "overall  90.00%  80.00%\n"
        return json.dumps({"overall": 0.9 if words[words.index("--model") + 1] == "old" else 0.8})

    monkeypatch.setattr(train_report, "_evaluation", evaluation)
    args = argparse.Namespace(
        model="old", eval=["shapes"], eval_limit=6, device="cpu", dtype=None, adapter=None
    )
    found = train_report.compare_suites(tmp_path, args, Path("new"))
    folders = [str(tmp_path / "eval" / name) for name in ("shapes-before", "shapes-after")]
    shared = ["--json", "--limit", "6", "--device", "cpu"]
    assert calls == [
        ["run", "--suite", "shapes", "--model", "old", "-R", folders[0], *shared],
        ["run", "--suite", "shapes", "--model", "new", "-R", folders[1], *shared],
        ["compare", *folders],
    ]
    facts = {"model": "old", "steps": 2, "rows": 3, "bad_rows": 0, "trained_parameters": 5, "result": "new"}
    losses = {"before": {"image_loss": 2.0}, "after": {"image_loss": 1.5}}
    lines = train_report.report_lines({**facts, **losses, "evaluations": found})
    assert "| image tokens | 2.0000 | 1.5000 |" in lines
    assert "shapes: 90.0% before, 80.0% after" in lines
    assert "overall  90.00%  80.00%" in lines


def test_an_adapter_is_evaluated_on_its_model(tmp_path, monkeypatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(train_report, "_evaluation", lambda words: calls.append(words) or "{}")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    args = argparse.Namespace(
        model="old", eval=["shapes"], eval_limit=None, device=None, dtype=None, adapter=None
    )
    train_report.compare_suites(tmp_path, args, tmp_path / "adapter")
    assert calls[0][3:5] == ["--model", "old"]
    assert calls[1][3:7] == ["--model", "old", "--adapter", str(tmp_path / "adapter")]
    args.adapter = tmp_path / "first"
    train_report.compare_suites(tmp_path, args, tmp_path / "adapter")
    assert calls[3][3:7] == ["--model", "old", "--adapter", str(tmp_path / "first")]


def test_an_adapter_on_a_model_with_another_carries_its_words(random_adapter, tmp_path) -> None:
    pytest.importorskip("peft")
    from bifrons.learn.adapters import LoraOptions
    from bifrons.learn.fine_tuning import prepare_model

    base = shutil.copytree(random_adapter(SHAPES_JANUS), tmp_path / "base")
    write_taught(base, {"painting": frozenset({"houses"}), "reading": frozenset()})
    pipe = JanusPipeline.from_pretrained(SHAPES_JANUS, "cpu", "float32", progress=False)
    pipe.load_adapter(base)
    pipe.taught = {"reading": frozenset({"wombat"})}
    adapter = prepare_model(pipe, LoraOptions(2), 0)
    train_report.write_result(pipe, adapter, tmp_path / "new", torch.float32)
    assert read_taught(tmp_path / "new") == {"painting": {"houses"}, "reading": {"wombat"}}
