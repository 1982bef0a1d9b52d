"""`bifrons train grpo`: a run, the same command again, and what is refused."""

import json

import pytest

pytest.importorskip("peft")


def test_a_run_gives_a_model_its_log_and_curves(
    bifrons_main, janus_mini, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "def bright(prompts, pictures):\n    return [sum(p.convert('L').tobytes()) for p in pictures]\n"
    (tmp_path / "cli_rewards.py").write_text(code)
    (tmp_path / "p.txt").write_text("a red star\ntwo hearts\n")
    command = ["train", "grpo", "-m", janus_mini, "--device", "cpu", "--prompts", "p.txt", "-o", "run"]
    command += ["--reward", "cli_rewards:bright", "--reward-weight", "0.001", "--steps", "2"]
    command += ["--prompts-per-step", "1", "--group-size", "2", "--lora", "2", "--json"]
    assert bifrons_main(*command) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["steps"] == 2
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").exists()
    assert "<polyline" in (tmp_path / "run" / "curves.svg").read_text()
    assert bifrons_main(*command) == 0
    assert json.loads(capsys.readouterr().out)["reward_first"] == facts["reward_first"]
    assert bifrons_main(*command, "--seed", "3") == 2
    assert "is a run with seed 0, not 3" in capsys.readouterr().err
    assert bifrons_main(*command[:-1], "-o", "other", "--reward", "shapes") == 2  # one weight for two
    assert bifrons_main(*command[:8], "-o", "other", "--reward", "shapes", "--steps", "1") == 1
    assert "bad row: p.txt line 1" in capsys.readouterr().err
