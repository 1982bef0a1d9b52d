"""`bifrons train grpo`: a run, the same command again, and what is refused."""

import json

import pytest
from bifrons.apps.cli import train_report
from bifrons.blocks.vocabulary import read_taught, read_vocabulary

from ...models import SHAPES_JANUS

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
    command += ["--prompts-per-step", "1", "--group-size", "2", "--lora", "2", "--sample", "a <i>", "--json"]
    assert bifrons_main(*command) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["steps"] == 2
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").exists()
    assert "<polyline" in (tmp_path / "run" / "curves.svg").read_text()
    samples = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert samples == ["step-0-0.png", "step-2-0.png"]
    assert 'alt="a &lt;i&gt;, step 2"' in (tmp_path / "run" / "samples.html").read_text()
    report = (tmp_path / "run" / "report.md").read_text()
    assert f"2 steps on 2 prompts (0 left out), {facts['trained_parameters']:,} trained parameters" in report
    assert f"| mean reward | {facts['reward_first']:.4f} | {facts['reward_last']:.4f} |" in report
    assert bifrons_main(*command) == 0
    again = json.loads(capsys.readouterr().out)
    assert {**again, "seconds": 0} == {**facts, "seconds": 0}
    assert bifrons_main(*command, "--seed", "3") == 2
    assert "is a run with seed 0, not 3" in capsys.readouterr().err
    assert bifrons_main(*command[:-1], "-o", "other", "--reward", "shapes") == 2  # one weight for two
    assert bifrons_main(*command[:8], "-o", "other", "--reward", "shapes", "--steps", "1") == 1
    assert "bad row: p.txt line 1" in capsys.readouterr().err


def test_answers_are_sampled_evaluated_and_teach_words(bifrons_main, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_lengths.py").write_text(
        "def length(prompts, answers):\n    return list(map(len, answers))\n"
    )
    questions = ["Where is the wombat?", "How many stars are there?"]
    rows = [{"messages": [{"role": "user", "content": text}]} for text in questions]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    calls: list[list[str]] = []

    def evaluation(words: list[str]) -> str:
        calls.append(words)
        return '{"overall": 0.5}' if words[0] == "run" else "overall  50.00%  50.00%\n"

    monkeypatch.setattr(train_report, "_evaluation", evaluation)
    command = ["train", "grpo", "-m", SHAPES_JANUS, "--device", "cpu", "--prompts", "q.jsonl", "-o", "run"]
    command += ["--reward", "cli_lengths:length", "--steps", "2", "--prompts-per-step", "1", "--lora", "2"]
    command += ["--group-size", "2", "--max-new-tokens", "3", "--sample-every", "1", "--eval", "shapes"]
    assert bifrons_main(*command) == 0
    assert "mean reward" in capsys.readouterr().out
    adapter = tmp_path / "run" / "adapter"
    assert [words[0] for words in calls] == ["run", "run", "compare"]
    assert "run/adapter" in calls[1]
    assert "shapes: 50.0% before, 50.0% after" in (tmp_path / "run" / "report.md").read_text()
    page = (tmp_path / "run" / "samples.html").read_text()
    assert all(f'<th scope="col">{text}</th>' in page for text in questions)
    assert page.count("<p>") == 3 * 2  # steps 0, 1 and 2
    answer = (tmp_path / "run" / "samples" / "step-2-1.txt").read_text()
    assert answer
    assert f"<p>{answer}</p>" in page

    # The words of its prompts go with the adapter, and into the folder that it is merged into.
    assert read_taught(adapter) == {"painting": set(), "reading": {"wombat"}}
    assert bifrons_main("convert", SHAPES_JANUS, tmp_path / "merged", "--merge-adapter", adapter) == 0
    merged = read_vocabulary(tmp_path / "merged")
    assert merged is not None
    assert not merged.unknown(questions, "reading")
    assert merged.unknown(["a wombat"], "painting") == ["wombat"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--eval-limit", "3"), "--eval SUITE"),
        (("--sample", "a star", "--sample-every", "0"), "--sample-every above 0"),
        (("--sample-every", "-1"), "sample_every"),
    ],
)
def test_refused_before_a_model_is_loaded(words, said, bifrons_main, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("bifrons.apps.cli.train_work.load_pipeline", lambda *_, **__: pytest.fail("loaded"))
    command = ["train", "grpo", "--prompts", "p.txt", "--reward", "shapes", "--steps", "1"]
    assert bifrons_main(*command, "-o", tmp_path / "run", *words) == 2
    assert said in capsys.readouterr().err
