"""Each suite from its file to its score and report, with a stand-in judge and with a small trained one."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bifrons.eval.judges.answers import AnswerFile
from bifrons.eval.suites.catalog import CATALOG
from bifrons.vl2.pipeline import VL2Pipeline

from ...models import SHAPES_VL2
from . import data

SUITES = tuple(CATALOG)
HELD_TO = {"wise": ["Score: 0", "Score: 1"], "geneval++": ['{"correct": 0}', '{"correct": 1}']}


FORKER = """
import json, os, sys
from bifrons.apps.cli.main import main
for line in sys.stdin:
    if not (child := os.fork()):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(json.loads(line)))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs each line's command in a process of its own, whose id and status it prints."""


@pytest.fixture(scope="module")
def forker() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", FORKER], stdin=-1, stdout=-1, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def rows_of(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]


def summary_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "summary.json").read_bytes())


def command(suite: str, root: Path, path: Path, model: Path, *more: str) -> list[str]:
    return ["eval", "run", "-R", str(root), "--suite", suite, "--data", str(path), "-m", str(model),
            "--device", "cpu", "--processes", "1", *more]  # fmt: skip


@pytest.mark.parametrize("suite", SUITES)
def test_from_file_to_score(
    suite: str, tmp_path: Path, janus_mini: Path, judge_server: Any, bifrons_main: Callable[..., int],
    forker: subprocess.Popen[str],
) -> None:  # fmt: skip
    root, path = tmp_path / "run", data.write(suite, tmp_path)
    arguments = command(suite, root, path, janus_mini)
    judge_server.pause = 0.03  # long enough for another question to arrive
    assert bifrons_main(*arguments, "--judge", judge_server.url) == 0
    results, summary = rows_of(root), summary_of(root)
    assert len(results) == (6 if suite == "wise" else 3) * CATALOG[suite].images_per_prompt
    assert summary["overall"] == pytest.approx(data.recomputed(suite, results))
    low, high = summary["overall_interval"]
    assert 0 <= low <= summary["overall"] <= high <= 1
    assert summary["judge"]["model"] == "fake/stand-in"
    assert summary["judge"]["version"] == judge_server.url
    assert summary["wording"]["text"] == CATALOG[suite].wording.text
    assert not summary["comparable"]
    official = CATALOG[suite].judge
    assert f"the judge is stand-in, the official one {official}" in summary["obstacles"] or not official
    for name in ("report.md", "report.html"):
        text = (root / name).read_text()
        assert "stand-in" in text
        assert CATALOG[suite].title.split()[0] in text.replace("\\", "")
    assert max(judge_server.asked.values()) == 1
    assert judge_server.most > 1 or suite in ("wise", "genai", "geneval++")
    # The same command, without naming the judge, has nothing to do; another judge is refused.
    asked, before = judge_server.number, (root / "summary.json").read_bytes()
    assert bifrons_main(*arguments) == 0
    assert (judge_server.number, (root / "summary.json").read_bytes()) == (asked, before)
    assert bifrons_main(*arguments, "--judge", f"vl2:{SHAPES_VL2}") == 1
    killed_and_resumed(root, judge_server, arguments, bifrons_main, forker)


def killed_and_resumed(
    whole: Path, server: Any, arguments: list[str], main: Callable[..., int], forker: subprocess.Popen[str]
) -> None:
    """kill -9 while the judge answers, then the same command: the same results, and nothing asked twice."""
    root, total = whole.parent / "killed", sum(server.asked.values())
    shutil.copytree(whole, root)
    for name in ("answers.sqlite", "judge.json", "results.jsonl", "summary.json", "report.md", "report.html"):
        (root / name).unlink()
    server.asked.clear()
    server.pause = 0.05
    arguments = [str(root) if word == str(whole) else word for word in arguments]
    arguments += ["--judge", server.url, "--judge-workers", "1"]
    assert forker.stdin is not None
    assert forker.stdout is not None
    print(json.dumps(arguments), file=forker.stdin, flush=True)
    process = int(forker.stdout.readline())
    deadline = time.monotonic() + 120
    while sum(server.asked.values()) < total // 2:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    assert forker.stdout.readline() == "-9\n"
    while server.now:  # of the killed process
        time.sleep(0.01)
    kept = AnswerFile(root / "answers.sqlite")
    recorded = kept._connection.execute("SELECT COUNT(*) FROM answers").fetchone()[0]
    kept.close()
    before = sum(server.asked.values())
    assert recorded in (before, before - 1), "an answer that had arrived was lost, beside the one under way"
    assert 0 < before < total
    assert main("eval", "score", "-R", root) == 1
    server.pause = 0.0
    assert main(*arguments) == 0
    assert sum(server.asked.values()) - before == total - recorded
    for name in ("results.jsonl", "summary.json"):
        assert (root / name).read_bytes() == (whole / name).read_bytes()


def test_the_official_switch_of_dpg(
    tmp_path: Path, janus_mini: Path, judge_server: Any, bifrons_main: Callable[..., int]
) -> None:
    root, path = tmp_path / "run", data.write("dpg", tmp_path)
    assert bifrons_main(*command("dpg", root, path, janus_mini), "--judge", judge_server.url) == 0
    plain, results, asked = summary_of(root), rows_of(root), judge_server.number
    assert bifrons_main("eval", "score", "-R", root, "--official") == 0
    summary = summary_of(root)
    assert summary["overall"] == pytest.approx(data.recomputed("dpg", results, official=True))
    assert summary["official_switch"] is True
    assert judge_server.number == asked
    # Categories: of the last picture of each prompt, answers as they are.
    yes = [[a["text"].lower().strip(".") == "yes" for a in row["answers"]] for row in results[3::4]]
    assert summary["groups"]["L2/entity - whole"]["score"] == pytest.approx((yes[1][0] + yes[2][0]) / 2)
    colors = [*yes[0][1:], *yes[1][1:], *yes[2][1:]]
    assert summary["groups"]["L2/attribute - color"]["score"] == pytest.approx(sum(colors) / 7)
    assert plain["groups"]["L2/attribute - color"]["items"] == 4 * 7
    assert bifrons_main("eval", "score", "-R", root) == 0
    assert summary_of(root) == plain
    # The official file is known by its name in git.
    rows = CATALOG["dpg"].read(path)
    name = subprocess.run(
        ["git", "hash-object", "--no-filters", path], capture_output=True, text=True, check=True
    )
    assert rows[0]["git_blob"] == name.stdout.strip()
    assert "the prompts are not the official ones" in plain["obstacles"]
    rows[0]["git_blob"] = "98457fc9901943f51ff9a30367250fc292533bed"
    assert CATALOG["dpg"].is_official(rows)  # type: ignore[misc]


def test_a_repeated_question_of_dpg_keeps_its_place(tmp_path: Path) -> None:
    path = tmp_path / "dpg_bench.csv"
    lines = [(1, "0", "a (x)"), (2, "0", "b (x)"), (3, "1", "c (x)"), (2, "3", "d (x)")]
    head = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
    path.write_text(head + "".join(f'i,p,{n},{parents},"{kind}",Q{n}?\n' for n, parents, kind in lines))
    (row,) = CATALOG["dpg"].read(path)
    assert [(q["id"], q["category"]) for q in row["questions"]] == [(1, "a"), (2, "d"), (3, "c")]


def test_a_local_model_judges_every_suite(
    tmp_path: Path, janus_mini: Path, bifrons_main: Callable[..., int]
) -> None:
    for suite in SUITES:
        folder = tmp_path / suite.replace("+", "p")
        folder.mkdir()
        root, path = folder / "run", data.write(suite, folder)
        more = ("--judge", f"vl2:{SHAPES_VL2}", "--images-per-prompt", "1")
        status = bifrons_main(*command(suite, root, path, janus_mini, *more))
        assert status == 0
        summary, forms = summary_of(root), HELD_TO.get(suite, [])
        assert summary["judge"]["kind"] == "vl2"
        # It can't follow a long prompt: its answer is one of those that the suite reads, and that is said.
        assert summary["judge"]["held_to"] == forms
        assert (
            f"the judge's answers are held to a form: {', '.join(forms)}" in summary["obstacles"]
        ) == bool(forms)
        assert not forms or {a["text"] for row in rows_of(root) for a in row["answers"]} <= {*forms}
        if suite not in ("geneval2", "genai"):
            assert summary["overall"] == pytest.approx(data.recomputed(suite, rows_of(root)))
    # Probabilities: of the first token's ids over the whole vocabulary.
    pipe = VL2Pipeline.from_pretrained(SHAPES_VL2, "cpu", progress=False)

    def mass(picture: Path, question: str, forms: tuple[str, ...]) -> float:
        p = pipe.next_logits(pipe.question_messages(picture, question)).double().softmax(-1)
        return float(p[list({pipe.tokenizer.encode(form, bos=False)[0] for form in forms})].sum())

    def pictures(suite: str) -> list[Path]:
        return [tmp_path / suite / "run" / "images" / f"{i:05d}" / "samples" / "0000.png" for i in range(3)]

    number, yes = ("three", "Three", "3", " three", " Three", " 3"), ("Yes", "yes", " Yes", " yes")
    forms = {"How many stars are there?": number, "Is it red?": yes, "Is there a star?": yes}
    atoms = [
        math.prod(mass(p, f"{q} Answer in one word.", f) for q, f in forms.items()) ** (1 / 3)
        for p in pictures("geneval2")
    ]
    assert summary_of(tmp_path / "geneval2" / "run")["overall"] == pytest.approx(sum(atoms) / 3)
    scores = [
        mass(p, f'Does this figure show "{prompt}"? Please answer yes or no.', ("Yes",))
        for p, prompt in zip(pictures("genai"), data.PROMPTS[:2], strict=False)
    ]
    assert summary_of(tmp_path / "genai" / "run")["overall"] == pytest.approx(sum(scores) / 2)


def test_an_endpoint_held_to_a_form_by_its_requests(
    tmp_path: Path, janus_mini: Path, judge_server: Any, bifrons_main: Callable[..., int]
) -> None:
    root, path = tmp_path / "run", data.write("wise", tmp_path)
    options = {"structured_outputs": {"choice": HELD_TO["wise"]}, "seed": 1}
    more = ("--judge", judge_server.url, "--judge-options", json.dumps(options))
    assert bifrons_main(*command("wise", root, path, janus_mini, *more)) == 0
    assert all(body["structured_outputs"] == options["structured_outputs"] for body in judge_server.bodies)
    assert summary_of(root)["judge"]["held_to"] == ["structured_outputs"]
    assert "the judge's answers are held to a form: structured_outputs" in summary_of(root)["obstacles"]


def test_a_refused_question_leaves_its_picture_out(
    tmp_path: Path, janus_mini: Path, judge_server: Any, bifrons_main: Callable[..., int]
) -> None:
    root, path = tmp_path / "run", data.write("questions", tmp_path)
    judge_server.fail = lambda number: 400 if number == 2 else 200
    arguments = command("questions", root, path, janus_mini, "--judge", judge_server.url)
    assert bifrons_main(*arguments, "--judge-workers", "1") == 0
    summary = summary_of(root)
    assert summary["not_scored"] == [
        {
            "filename": "00000/samples/0000.png",
            "reason": 'the judge refused: status 400: {"error": {"message": "fault 400"}}',
        }
    ]
    assert (summary["images"], "the score lacks 1 picture" in summary["obstacles"]) == (2, True)
    assert bifrons_main(*arguments) == 0  # it is asked again, alone
    assert (judge_server.number, summary_of(root)["images"]) == (10, 3)


def test_a_judge_that_refuses_everything(
    tmp_path: Path, janus_mini: Path, judge_server: Any, bifrons_main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    judge_server.fail = lambda number: 400
    path = data.write("questions", tmp_path)
    assert (
        bifrons_main(*command("questions", tmp_path / "run", path, janus_mini, "--judge", judge_server.url))
        == 1
    )
    assert (
        "the judge refuses every question; the first: the judge refused: status 400"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "wise"], "the suite wise needs its data, which is not part of this package"),
        (["--suite", "wise", "--data", "nowhere"], "nowhere does not exist; accepted: merge.json"),
        (["--suite", "questions", "--data", "FILE"], "say who answers with --judge: http(s)://host:port"),
        (["--suite", "questions", "--data", "FILE", "--judge", "x"], "judge is 'x'; accepted: an address"),
        (
            ["--suite", "questions", "--data", "FILE", "--detector", "shapes"],
            "--detector is for suites with a detector",
        ),
        (["--suite", "questions", "--data", "FILE", "--official"], "--official is for the suite dpg"),
        (
            ["--suite", "shapes", "--judge", f"vl2:{SHAPES_VL2}"],
            "--judge is for suites of questions (geneval2",
        ),
        (["--suite", "tifa"], "suite is 'tifa'; accepted: geneval, shapes, shapes-hard, geneval2"),
    ],
)
def test_errors_of_the_command_line(
    arguments: list[str], message: str, tmp_path: Path, janus_mini: Path, bifrons_main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = str(data.write("questions", tmp_path))
    words = [file if word == "FILE" else word for word in arguments]
    status = 1 if words[1] == "wise" else 2  # what a file lacks, or what the line says
    assert bifrons_main("eval", "run", "-R", tmp_path / "run", "-m", janus_mini, *words) == status
    assert message in capsys.readouterr().err
