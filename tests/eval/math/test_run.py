"""`bifrons eval math` on small files, answered by a small model: scores, going on, and hostile rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from bifrons.blocks.errors import BifronsError, OptionError
from bifrons.eval.judges.judge import JudgeChoice
from bifrons.eval.judges.local import LocalJudge
from bifrons.eval.math.problems import PROMPT, read_problems
from bifrons.eval.math.run import MathOptions, evaluate_math
from bifrons.eval.math.values import is_right
from bifrons.nano.recipes.counting import FILES, write_questions

from ...models import SHAPES_JANUS
from ...transformers_text import make_folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("counting")
    write_questions(folder, 1, 1, 4, seed=3)
    return folder / FILES["test"]


def run(bifrons_main: Any, capsys: Any, *words: Any) -> tuple[int, dict[str, Any]]:
    status = bifrons_main("eval", "math", *words, "--device", "cpu", "--processes", "1", "--json")
    return status, json.loads(capsys.readouterr().out)


def test_pass_at_1_of_pictures_and_texts(bifrons_main, capsys, questions, tmp_path, monkeypatch) -> None:
    with questions.open() as lines:
        rows = [json.loads(line) for line in lines]
    picture = rows[0]["messages"][0]["content"][0]["image"]
    rows.append({"question": "How many shapes are there?", "image": picture, "answer": 1, "subject": "one"})
    rows.append({"problem": "What is it?", "solution": r"It is \boxed{red}.", "level": 2})
    file = questions.with_name("mixed.jsonl")
    file.write_text("\n".join(map(json.dumps, rows)))
    asked = ("--prompt", "{question}", "--max-new-tokens", 4, "--samples", 2)
    words = (file, "-m", SHAPES_JANUS, "-R", tmp_path / "run", *asked)
    status, found = run(bifrons_main, capsys, *words, "--temperature", 1.5)
    assert status == 0
    results = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [one["expected"] for one in results[-2:]] == ["1", "red"]
    for one in results:
        assert one["right"] == [is_right(text, one["expected"]) for text in one["answers"]]
    assert any(len({*one["answers"]}) == 2 for one in results)
    shares = [sum(one["right"]) / 2 for one in results]
    low, high = found["overall_interval"]
    assert found["overall"] == pytest.approx(sum(shares) / 6)
    assert low <= found["overall"] <= high
    assert found["groups"]["pass@1"]["items"] == 12
    assert set(found["groups"]) == {"pass@1", "one", "2"}
    assert found["metrics"]["pass@2"] == sum(share > 0 for share in shares) / 6

    # The same command asks nothing again; of a third sample only that; other words are another run's.
    batches: list[int] = []
    chat = LocalJudge.chat

    def counted(self, conversations, draw):
        batches.append(len(conversations))
        return chat(self, conversations, draw)

    monkeypatch.setattr(LocalJudge, "chat", counted)
    assert run(bifrons_main, capsys, *words, "--temperature", 1.5)[1] == found
    assert batches == []
    status, more = run(bifrons_main, capsys, *words[:-1], 3, "--temperature", 1.5, "--batch-size", 4)
    assert (status, batches, more["samples"]) == (0, [4, 2], 3)
    status, refused = run(bifrons_main, capsys, *words, "--temperature", 1)
    assert status == 1
    assert "another temperature" in refused["error"]


def test_without_a_folder(bifrons_main, capsys, questions) -> None:
    arguments = ("eval", "math", questions, "-m", SHAPES_JANUS, "--max-new-tokens", 3, "--limit", 2)
    assert bifrons_main(*arguments, "--device", "cpu", "--processes", 1) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("pass@1: ")
    assert "2 answers" in printed
    assert {path.name for path in questions.parent.iterdir()} >= {*FILES.values(), "pictures"}


def test_a_question_beyond_the_context_is_not_scored(tmp_path) -> None:
    rows = [{"question": "What is it? " * 2000, "answer": 1}, {"question": "What is it?", "answer": 1}]
    file = tmp_path / "long.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    options = MathOptions("{question}", max_new_tokens=2)
    found = evaluate_math(tmp_path / "r", file, JudgeChoice(f"janus:{SHAPES_JANUS}"), options, None, "cpu", 1)
    assert found["problems"] == 1
    assert [one["problem"] for one in found["not_scored"]] == [0]
    assert "context" in found["not_scored"][0]["reason"]


def test_the_words_of_questions(tmp_path) -> None:
    (tmp_path / "p.jsonl").write_text('{"question": "1+1?", "answer": "x #### 2"}')
    (one,) = read_problems(tmp_path / "p.jsonl", PROMPT, tmp_path / "copies")
    assert one.expected == "2"
    text = "1+1?\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert one.messages == [{"role": "user", "content": [{"type": "text", "text": text}]}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "JSON"),
        ("[1]", "is no object"),
        ('{"answer": 1}', "has no question or problem"),
        ('{"question": "1+1?"}', "has no answer or expected_answer or solution"),
        ('{"question": "1+1?", "answer": " "}', "has no answer"),
        ('{"question": "1+1?", "answer": "\\\\boxed{}"}', "its answer is empty"),
        ('{"question": "1+1?", "answer": [2]}', "has no answer"),
        ('{"question": "?", "answer": 1, "image": "../up.png"}', "has no picture '../up.png'"),
        ('{"messages": "x", "answer": 1}', "accepted: a list of messages"),
        ('{"messages": [1], "answer": 1}', "accepted: a list of messages"),
        ("[" * 9000, "JSON"),
        ('{"question": "' + "x" * 2_000_000 + '", "answer": 1}', "2,000,000 characters"),
    ],
)
def test_hostile_rows_are_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "1+1?", "answer": 2}\n' + line + "\n")
    (tmp_path.parent / "up.png").write_bytes(b"")
    with pytest.raises(BifronsError, match="line 2.*" + message):
        list(read_problems(path, PROMPT, tmp_path / "copies"))


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 2},
        {"samples": 0},
        {"prompt": "x"},
        {"temperature": -1},
        {"top_p": 0},
        {"max_new_tokens": 0},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        MathOptions(**options)


def test_a_text_model(bifrons_main, capsys, tmp_path) -> None:
    folder, _ = make_folder(tmp_path / "model", "qwen2")
    rows = [{"question": f"{number}+1?", "answer": number + 1} for number in (1, 2)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = (tmp_path / "p.jsonl", "-m", folder, "--max-new-tokens", 3, "--samples", 2, "--temperature", 0.6)
    status, found = run(bifrons_main, capsys, *words)
    assert (status, found["problems"], found["samples"], found["not_scored"]) == (0, 2, 2, [])
