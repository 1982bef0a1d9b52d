"""The reports on the models of the world of things: what is counted, and what a judge accepts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bifrons import JanusPipeline, VL2Pipeline
from bifrons.eval.geneval.detectors import as_row
from bifrons.eval.nano import detector as detector_scores
from bifrons.eval.nano import janus, vl2
from bifrons.eval.nano.scores import ask_all, count, figures, markdown, same_answer, sheet
from bifrons.nano.world.catalog import PAINTS, things
from bifrons.nano.world.detector import Detection
from bifrons.nano.world.requests import Seen
from bifrons.nano.world.sampling import KINDS
from bifrons.nano.world.things_detector import CenterNet, ThingsDetector, load_detector, save_detector
from PIL import Image

DATA = Path(__file__).parents[2] / "data"


def perfect(seen: tuple[Seen, ...]) -> list[Detection]:
    return [Detection(one.thing, one.color, one.box, 0.95) for one in seen]


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    """A detector with random weights, which finds next to nothing."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("detector")
    save_detector(folder, CenterNet(len(things()), len(PAINTS), 16), 16, {"none recall": 0.5})
    return folder


def test_shares_have_intervals_and_a_table():
    counts = count(["a", "b", "a"], [True, True, False, True, False, False], per_prompt=2)
    assert {kind: table.tolist() for kind, table in counts.items()} == {"a": [[2, 2], [0, 2]], "b": [[1, 2]]}
    found = figures(counts)
    assert (found["a"]["score"], found["a"]["right"], found["a"]["of"]) == (0.5, 2, 4)
    assert found["overall"]["score"] == 0.5
    assert 0 <= found["overall"]["low"] < 0.5 < found["overall"]["high"] <= 1
    many = {"a": np.array([[1, 1]] * 90), "b": np.array([[0, 1]] * 10)}
    assert figures(many, pooled=True)["overall"]["score"] == 0.9
    assert figures(many)["overall"]["score"] == 0.5
    lines = markdown({"x": found, "y": figures({"c": np.array([[1, 1]])})}).splitlines()
    assert lines[0] == "| | x | y |"
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == ["a", "b", "c", "overall"]


def test_a_perfect_detector_accepts_all_and_refuses_near_misses():
    shown = list(detector_scores.scenes("none", 24, 5))
    good = detector_scores.measure(shown, [perfect(one.seen) for one in shown], 0)
    assert good == {"recall": 1, "precision": 1, "color": 1, "accepted": 1, "refused": 1}
    names = list(things())
    wrong = [
        [Detection(names[names.index(d.label) - 1], d.color, d.box, d.score) for d in perfect(one.seen)]
        for one in shown
    ]
    bad = detector_scores.measure(shown, wrong, 0)
    assert (bad["recall"], bad["precision"], bad["accepted"]) == (0, 0, 0)


def test_the_threshold_separates_what_is_there_from_what_is_not():
    shown = list(detector_scores.scenes("none", 12, 6))
    scores = [[0.9 if i % 2 else 0.52 for i, _ in enumerate(one.seen)] for one in shown]

    class Unsure:
        threshold = 0.3

        def detect_all(self, images: list[Image.Image]) -> list[list[Detection]]:
            assert self.threshold == min(detector_scores.THRESHOLDS)
            found = []
            for one, own in zip(shown, scores, strict=True):
                things_seen = [
                    Detection(d.label, d.color, d.box, s) for d, s in zip(perfect(one.seen), own, strict=True)
                ]
                found.append([*things_seen, Detection("cat", "red", (0, 0, 3, 3), 0.33)])
            return found

    detector = Unsure()
    chosen = detector_scores.choose_threshold(detector, shown)  # pyright: ignore
    assert 0.35 <= chosen <= 0.5
    assert detector.threshold == 0.3


def test_sentences_are_judged_by_rules_and_for_what_else_is_there():
    prompts = janus.sentences(("counting", "color_attr", "many"), 2, 3, "train")
    assert [prompt.kind for prompt in prompts] == ["counting"] * 2 + ["color_attr"] * 2 + ["many"] * 2
    assert len({prompt.text for prompt in prompts}) == 6
    shown = next(one for one in detector_scores.scenes("none", 6, 5) if one.row["tag"] == "color_attr")
    prompt = janus.Prompt("color_attr", shown.row)
    found = as_row(perfect(shown.seen))
    assert prompt.judge(found) == (True, "")
    assert prompt.is_all(found)
    more = as_row([*perfect(shown.seen), Detection("stop sign", "red", (0, 0, 9, 9), 0.9)])
    assert prompt.judge(more)[0]
    assert not prompt.is_all(more)
    assert not prompt.judge(as_row(perfect(shown.seen)[:1]))[0]


def test_the_report_of_janus_is_written(detector: Path, tmp_path: Path, monkeypatch, capsys):
    pipe = JanusPipeline.from_pretrained(DATA / "janus-mini", "cpu", progress=False)
    pictures = [Image.new("RGB", (192, 192), "gray")]
    monkeypatch.setattr(pipe, "generate", lambda texts, **options: pictures * len(texts))
    monkeypatch.setattr(janus.JanusPipeline, "from_pretrained", lambda *a, **k: pipe)
    rows = [one.row for one in detector_scores.scenes("none", 6, 5)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["x", "--folder", str(tmp_path / "out"), "--detector", str(detector)]
    argv += ["--prompts", str(tmp_path / "prompts.jsonl"), "--per-prompt", "2", "--sentences", "1"]
    argv += ["--questions", "3", "--scenes", "2"]
    monkeypatch.setattr("sys.argv", argv)
    janus.main()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["figures"]["geneval"]) == [*KINDS, "overall"]
    assert results["figures"]["geneval"]["overall"]["of"] == 12
    assert {len(row["prompt"]) > 0 for row in results["wrong"]["fresh"]} == {True}
    assert results["psnr"]["least"] <= results["psnr"]["mean"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "recall 50.0%" in text
    assert "| combinations left out |" in text
    assert text in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "sheet.png") as page:
        assert page.width == 8 * 200 + 8


def test_the_report_of_vl2_asks_and_judges(tmp_path: Path, monkeypatch):
    cases = vl2.phrases(8, 2, "train")
    answers = [phrase.answer(view) for view, phrase in cases]
    monkeypatch.setattr(vl2, "ask_all", lambda *asked: answers)
    pipe: VL2Pipeline = None  # pyright: ignore
    exact, boxes = vl2.score_phrases(pipe, cases, 8)
    assert sum(table[:, 0].sum() for table in exact.values()) == 8
    assert boxes["boxes"][:, 0].all()
    assert "absent" in exact
    answers = [answers[-1], *answers[:-1]]
    assert sum(table[:, 0].sum() for table in vl2.score_phrases(pipe, cases, 8)[0].values()) < 8
    pairs = vl2.comparisons(6, 1, "train")
    answers = [question.answer.upper() + "." for *_, question in pairs]
    assert all(table[:, 0].all() for table in vl2.score_comparisons(pipe, pairs, 8).values())
    monkeypatch.setattr(janus, "ask_all", lambda pipe, asked, *rest: [q.answer for _, q in own])
    own = janus.questions(12, 4, "held_out")
    assert {question.held_out for _, question in own} == {True}
    assert all(table[:, 0].all() for table in janus.score_questions(pipe, own, 8).values())


def test_an_evaluation_runs_with_the_world_detector(bifrons_main, detector: Path, tmp_path: Path, capsys):
    rows = [one.row for one in detector_scores.scenes("none", 2, 5)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["-m", DATA / "janus-mini", "--prompts", tmp_path / "prompts.jsonl", "--device", "cpu"]
    words += ["--suite", "geneval", "--detector", "world", "--detector-weights", detector]
    words += ["--images-per-prompt", "1", "--processes", "1", "--json"]
    assert bifrons_main("eval", "run", "-R", tmp_path / "run", *words) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2
    report = (tmp_path / "run" / "report.md").read_text()
    assert "world of things' learned detector, on rendered scenes: recall 50.0%" in report


def test_pictures_are_looked_at_together_or_alone_alike(detector: Path, tmp_path: Path):
    one = load_detector(detector)
    assert isinstance(one, ThingsDetector)
    one.threshold = 0.0
    pictures = [shown.image for shown in detector_scores.scenes("none", 3, 2)]
    pictures.insert(1, pictures[0].resize((300, 200)))
    together = one.detect_all(pictures, batch=2)
    assert [len(found) for found in together] == [len(one.detect(picture)) for picture in pictures]
    assert sum(map(len, together)) > 20
    sheet(pictures[:1] * 3, ["a long line of words that is wrapped", "", "b"], 2, tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as page:
        assert page.width == 2 * 200 + 8


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_questions_are_of_their_split(split: str):
    assert {q.held_out for _, q in janus.questions(6, 1, split)} == {split == "held_out"}


def test_questions_stand_before_the_picture_or_after_it(monkeypatch: pytest.MonkeyPatch):
    pipe, picture = VL2Pipeline.from_pretrained("vl2-nano", "cpu"), Image.new("RGB", (64, 64))
    prompts = []

    def chat_batch(messages, max_new_tokens):
        prompts.append(pipe.processor.chat_inputs(messages[0]).ids.tolist())
        return ["It is not there."]

    monkeypatch.setattr(pipe, "chat_batch", chat_batch)
    for text_first in (False, True):
        (answer,) = ask_all(pipe, [([picture], "Where is it?")], 8, text_first=text_first)
        assert same_answer(answer, "It is not there.")
    after, before = prompts
    assert after == pipe.processor.chat_inputs(pipe.question_messages(picture, "Where is it?")).ids.tolist()
    image, asked = pipe.processor.image_id, pipe.tokenizer.encode("Where is it?", bos=False)
    for prompt, first in ((after, False), (before, True)):
        start = next(i for i in range(len(prompt)) if prompt[i : i + len(asked)] == asked)
        assert (start < prompt.index(image)) == first
