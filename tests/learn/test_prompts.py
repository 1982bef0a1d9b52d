"""Prompts files: what is read, and hostile ones."""

import json

import pytest
from bifrons import JanusPipeline
from bifrons.blocks.errors import OptionError
from bifrons.learn.curves import curves
from bifrons.learn.prompts import check_prompts, read_prompts

QUESTION = {"messages": [{"role": "user", "content": "How many?"}], "answer": "2"}


def test_texts_and_rows(tmp_path) -> None:
    (tmp_path / "p.txt").write_text("a red star\n\n  two hearts  \n")
    prompts, faults = read_prompts(tmp_path / "p.txt")
    assert prompts == [("p.txt line 1", {"prompt": "a red star"}), ("p.txt line 3", {"prompt": "two hearts"})]
    assert faults == []
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a star", "tag": "colors"}))
    assert read_prompts(tmp_path / "p.jsonl")[0][0][1] == {"prompt": "a star", "tag": "colors"}
    (tmp_path / "a.png").write_bytes(b"")
    part = {"type": "image_url", "image_url": {"url": "a.png"}}
    (tmp_path / "m.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": [part]}]}))
    ((_, row),), _ = read_prompts(tmp_path / "m.jsonl")
    assert row["messages"][0]["content"][0]["image_url"]["url"] == str(tmp_path / "a.png")


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", "7", "null", '"text"', "{}", '{"prompt": ""}', '{"prompt": 3}', '{"messages": []}',
     "[" * 9000, '{"messages": "x"}', '{"messages": [1]}', '{"prompt": NaN}', '{"prompt": null}'],
)  # fmt: skip
def test_bad_lines_are_named(line, tmp_path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a red star"}\n' + line + "\n")
    prompts, (fault,) = read_prompts(path)
    assert len(prompts) == 1
    assert fault.where == "p.jsonl line 2"
    assert len(str(fault)) < 500


def test_files_that_are_no_prompts_are_refused(tmp_path) -> None:
    (tmp_path / "both.jsonl").write_text(json.dumps({"prompt": "a star"}) + "\n" + json.dumps(QUESTION))
    (tmp_path / "p.csv").write_text("prompt\nx\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\xd8")
    for name in ("both.jsonl", "p.csv", "binary.txt", "missing.txt", "."):
        with pytest.raises(OptionError):
            read_prompts(tmp_path / name)


def test_prompts_that_the_model_or_the_reward_cannot_take_are_named(janus_mini) -> None:
    pipe = JanusPipeline.from_pretrained(janus_mini, "cpu", progress=False)

    def check(prompt):
        if "tag" not in prompt:
            raise OptionError("no tag")

    rows = [{"prompt": "a star", "tag": "x"}, {"prompt": "a star " * 3000, "tag": "x"}, {"prompt": "a star"}]
    good, faults = check_prompts(pipe, [(str(n), row) for n, row in enumerate(rows)], 8, check)
    assert good == rows[:1]
    assert [fault.where for fault in faults] == ["1", "2"]
    bad = {"messages": [{"role": "user", "content": [{"type": "image", "image": "/missing.png"}]}]}
    good, faults = check_prompts(pipe, [("0", QUESTION), ("1", bad)], 8)
    assert good == [QUESTION]
    assert "missing.png" in faults[0].reason


def test_curves_are_drawn() -> None:
    log = [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 1.0}]
    drawn = curves(log, {"reward": "mean <reward>"})
    assert drawn.count("<polyline") == 2
    assert "mean &lt;reward&gt;" in drawn
    assert curves(log[:1], {"reward": "r"}).count("<polyline") == 2
