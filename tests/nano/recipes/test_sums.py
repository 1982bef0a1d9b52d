"""The recipe of sums: true answers, and a model of new weights that is trained on them by the commands."""

import json
import re

import pytest
from bifrons import TextPipeline
from bifrons.blocks.errors import OptionError
from bifrons.learn.examples import read_example
from bifrons.learn.rewards.answers import AnswerReward, FormatReward
from bifrons.nano.recipes.sums import FILES, FORM, MODEL, TEST, shuffled_sums, write_all

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sums")
    write_all(path)
    return path


def rows_of(folder, name) -> list[dict]:
    return [json.loads(line) for line in (folder / FILES[name]).read_text().splitlines()]


def test_answers_are_true_and_no_test_is_trained_on(folder) -> None:
    questions, test = rows_of(folder, "questions"), rows_of(folder, "test")
    assert (len(questions), len(test)) == (1000 - TEST, TEST)
    texts, *asked = ({row["messages"][0]["content"] for row in rows_of(folder, name)} for name in FILES)
    assert asked[1].isdisjoint(texts | asked[0])
    for row in (*questions, *test):
        assert sum(map(int, re.findall(r"\d", row["messages"][0]["content"]))) == int(row["answer"])
    for one in shuffled_sums(2)[:50]:
        for line in one.thought.splitlines():
            step = re.fullmatch(r"(\d+)\+(\d)=(\d+)", line)
            assert step
            a, b, total = map(int, step.groups())
            assert a + b == total
        replies = [one.reply(thinks) for thinks in (True, False)]
        assert AnswerReward()([one.row()] * 2, replies) == [1, 1]
        assert FormatReward(FORM)([one.row()] * 2, replies) == [1, 0]


def test_new_weights_are_trained_by_texts_and_by_rewards(
    folder, bifrons_main, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["train", "sft", "--from-scratch", "-m", folder / MODEL, "--data", folder / FILES["texts"]]
    command += ["--device", "cpu", "--steps", "8", "--batch-size", "8", "--rows-at-once", "8"]
    command += ["--learning-rate", "3e-3", "--save-every", "4", "--validation", "0.01", "--json"]
    assert bifrons_main(*command, "-o", "sft") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["after"]["text_loss"] < facts["before"]["text_loss"] - 1
    pipe = TextPipeline.from_pretrained("sft/model", "cpu", progress=False)
    assert pipe.thinks
    rows = rows_of(folder, "texts")
    for row in rows[:2]:
        example = read_example(pipe, row["messages"])
        learned = pipe.tokenizer.decode(example.inputs.ids[example.learned].tolist())
        assert f"<think>\n{learned}" == row["messages"][1]["content"]
    rows[0]["messages"][1]["content"] = "12"
    with pytest.raises(OptionError, match="begins with <think>"):
        read_example(pipe, rows[0]["messages"])

    command = [
        "train",
        "grpo",
        "-m",
        "sft/model",
        "--prompts",
        folder / FILES["questions"],
        "--device",
        "cpu",
    ]
    command += ["--reward", "answer", "--reward", f"format:{FORM}", "--steps", "1", "--max-new-tokens", "8"]
    command += [
        "--prompts-per-step",
        "2",
        "--group-size",
        "2",
        "--sample-every",
        "1",
        "--lora",
        "2",
        "--json",
    ]
    assert bifrons_main(*command, "-o", "grpo") == 0
    assert 0 <= json.loads(capsys.readouterr().out)["reward_last"] <= 2
    assert (tmp_path / "grpo" / "samples" / "step-1-0.txt").read_text().startswith("<think>\n")
    pipe.load_adapter(tmp_path / "grpo" / "adapter")
    assert pipe.adapters == {"adapter": 1.0}
