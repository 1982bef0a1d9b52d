"""`bifrons eval read` on small files in the benchmarks' own formats, read by a small trained model."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from bifrons.blocks.errors import BifronsError
from bifrons.eval.read.benchmarks import BENCHMARKS
from bifrons.eval.read.metrics import anls, iou, relaxed_match
from bifrons.eval.row_files import Pictures
from bifrons.vl2.pipeline import VL2Pipeline
from PIL import Image

from ...models import SHAPES_VL2


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture that holds a red circle in its middle."""
    folder = tmp_path_factory.mktemp("scene")
    image = Image.new("RGB", (64, 64), "white")
    image.paste((200, 30, 30), (20, 24, 44, 40))
    image.save(folder / "a.png")
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "b.png")
    return folder


def png(path: Path) -> bytes:
    stream = io.BytesIO()
    Image.open(path).save(stream, "PNG")
    return stream.getvalue()


def examples(name: str, path: Path, images: Path, copies: Path) -> list[Any]:
    return list(BENCHMARKS[name].read(path, Pictures(images, copies)))


def test_every_format_gives_the_same_examples(scene: Path, tmp_path: Path) -> None:
    content = png(scene / "a.png")
    cases: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any]]] = {
        "chartqa": ("json", [{"imgname": "a.png", "query": "How many?", "label": "3"}],
                    {"question": "How many?", "answer": ["3"], "type": "human_test"}),
        "docvqa": ("json", [{"questionId": 1, "image": "a.png", "question": "Who?", "answers": ["x", "y"]}],
                   {"question": "Who?", "answers": ["x", "y"]}),
        "pope": ("jsonl", [{"question_id": 1, "image": "a.png", "text": "Is it red?", "label": "yes"}],
                 {"question": "Is it red?", "answer": "Yes", "category": "random"}),
        "refcoco": ("jsonl", [{"image": "a.png", "sent": "red", "bbox": [20, 24, 44, 40]}],
                    {"answer": ["red"], "question": "?", "bbox": [20.0, 24.0, 24.0, 16.0]}),
    }  # fmt: skip
    for name, (kind, rows, columns) in cases.items():
        path = tmp_path / f"{name}.{kind}"
        body = {"data": rows} if name == "docvqa" else rows
        path.write_text(json.dumps(body) if kind == "json" else "".join(json.dumps(r) + "\n" for r in rows))
        (plain,) = examples(name, path, scene, tmp_path / "copies")
        table = {
            key: [value] for key, value in {**columns, "image": {"bytes": content, "path": "a.png"}}.items()
        }
        folder = tmp_path / name
        folder.mkdir()
        pyarrow.parquet.write_table(pyarrow.table(table), folder / "x-00000.parquet")
        for parquet in (folder, folder / "x-00000.parquet"):
            (other,) = examples(name, parquet, scene, tmp_path / "copies")
            assert (other.question, other.answers, other.box) == (plain.question, plain.answers, plain.box)
            assert other.image.read_bytes() == content
    assert len(list((tmp_path / "copies").iterdir())) == 1


def test_mmes_folder_and_table(scene: Path, tmp_path: Path) -> None:
    for folder in (
        tmp_path / "count",
        tmp_path / "artwork" / "images",
        tmp_path / "artwork" / "questions_answers_YN",
    ):
        folder.mkdir(parents=True)
    lines = "Is it red?\tYes\nIs it blue?\tNo\n"
    (tmp_path / "count" / "7.txt").write_text(lines)
    (tmp_path / "count" / "7.png").write_bytes(png(scene / "a.png"))
    (tmp_path / "artwork" / "questions_answers_YN" / "8.txt").write_text(lines)
    (tmp_path / "artwork" / "images" / "8.png").write_bytes(png(scene / "b.png"))
    found = examples("mme", tmp_path, tmp_path, tmp_path / "copies")
    assert [(e.group, e.cluster, e.answers) for e in found] == [
        ("artwork", "artwork/8", ("yes",)), ("artwork", "artwork/8", ("no",)),
        ("count", "count/7", ("yes",)), ("count", "count/7", ("no",)),
    ]  # fmt: skip
    noisy = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(noisy, "PNG")
    rows = [
        ("0", base64.b64encode(noisy.getvalue()).decode(), "Is it red?", "Yes"),
        ("1", "0", "Is it blue?", "No"),
    ]
    text = "index\timage\tquestion\tanswer\tcategory\n" + "".join(
        "\t".join((*row, "count")) + "\n" for row in rows
    )
    (tmp_path / "mme.tsv").write_text(text)
    first, second = examples("mme", tmp_path / "mme.tsv", tmp_path, tmp_path / "copies")
    assert first.image == second.image
    assert first.cluster == second.cluster


def test_mmbench(scene: Path, tmp_path: Path) -> None:
    noisy = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(noisy, "PNG")
    coded = base64.b64encode(noisy.getvalue()).decode()
    head = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\n"
    rows = f'3\t"What\nis it?"\tLook.\tcat\tdog\t\t\tA\tx\t{coded}\n'
    rows += "1000003\tWhat is it?\t\tdog\tcat\t\t\tB\tx\t3\n"
    path = tmp_path / "mmbench.tsv"
    path.write_text(head + rows)
    first, second = examples("mmbench", path, tmp_path, tmp_path / "copies")
    assert first.question == "Look.\nWhat\nis it?\nA. cat\nB. dog"
    assert (first.cluster, second.cluster, first.image) == ("3", "3", second.image)
    assert second.options == (("A", "dog"), ("B", "cat"))
    benchmark = BENCHMARKS["mmbench"]
    assert benchmark.score(first, "A", (0, 0))[0].value == 1
    assert benchmark.score(second, "dog", (0, 0))[0].value == 0


def test_a_run_reads(scene: Path, tmp_path: Path, bifrons_main: Callable[..., int]) -> None:
    """Scores of a run are those of its own answers, which are the pipeline's."""
    pipe = VL2Pipeline.from_pretrained(SHAPES_VL2, "cpu", progress=False)
    files = {
        "refcoco": [{"image": f"{n}.png", "sent": "the red square", "bbox": [20, 24, 44, 40]} for n in "ab"],
        "chartqa": [{"imgname": f"{n}.png", "query": "What color is it?", "label": "Red"} for n in "ab"],
        "docvqa": [
            {"image": f"{n}.png", "question": "Which color?", "answers": ["red", "ret"]} for n in "ab"
        ],
        "pope": [{"image": f"{n}.png", "text": "Is there a star?", "label": "no"} for n in "ab"],
    }
    for name, rows in files.items():
        path, root = scene / f"{name}.json", tmp_path / name
        path.write_text(json.dumps(rows))
        arguments = ("eval", "read", name, path, "-R", root, "-m", f"vl2:{SHAPES_VL2}", "--device", "cpu")
        assert bifrons_main(*arguments, "--processes", "1") == 0
        results = [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]
        summary = json.loads((root / "summary.json").read_bytes())
        benchmark = BENCHMARKS[name]
        for image, result in zip("ab", results, strict=True):
            assert result["answer"] == pipe.ask(
                scene / f"{image}.png", result["question"], benchmark.max_tokens
            )
        if name == "refcoco":
            boxes = [pipe.locate(scene / f"{n}.png", "the red square", 64)[:1] for n in "ab"]
            right = [
                bool(b) and iou(tuple(v / 999 * 64 for v in b[0].normalized or ()), (20, 24, 44, 40)) >= 0.5  # type: ignore[arg-type]
                for b in boxes
            ]
        elif name == "chartqa":
            right = [relaxed_match(result["answer"], "Red") for result in results]
        elif name == "docvqa":
            right = [anls(result["answer"], ["red", "ret"]) for result in results]
        else:
            right = [
                bool({"No", "no", "not"} & {*re.findall(r"\w+", result["answer"].split(".")[0])})
                for result in results
            ]
        assert summary["overall"] == pytest.approx(sum(right) / 2)
        before = (root / "summary.json").read_bytes()
        assert bifrons_main(*arguments, "--json") == 0
        assert (root / "summary.json").read_bytes() == before
        assert bifrons_main(*arguments, "--limit", "1") == 1


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("pope", "x.csv", "a", "is of an unknown kind; accepted: .json"),
        ("pope", "x.jsonl", '{"image": "a.png", "text": "?", "label": "maybe"}', "accepted: yes or no"),
        (
            "pope",
            "x.jsonl",
            '{"image": "../up.png", "text": "?", "label": "no"}',
            "has no picture '../up.png'",
        ),
        ("pope", "x.jsonl", '{"text": "?", "label": "no"}', "has no picture; accepted: image"),
        ("pope", "x.jsonl", "[]", "is no object"),
        ("refcoco", "x.jsonl", '{"image": "a.png", "sent": "x", "bbox": [1, 2]}', "accepted: four numbers"),
        ("docvqa", "x.json", '{"data": 1}', "is no list"),
        ("chartqa", "x.parquet", "PAR1", "can't be read as Parquet"),
        ("mmbench", "x.tsv", "index\tA\tanswer\tquestion\n1\tx\tE\tq\n", "accepted: an option's letter"),
    ],
)
def test_odd_files(name: str, file: str, content: str, message: str, scene: Path, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_text(content)
    (tmp_path / "up.png").write_bytes(b"x")
    with pytest.raises(BifronsError, match=message):
        examples(name, path, scene, tmp_path / "copies")


def test_mme_and_pope_sum_up() -> None:
    from bifrons.eval.read.benchmarks import Scored
    from bifrons.eval.suites.suite import Item

    def one(group: str, cluster: str, value: float) -> Scored:
        return Scored(group, cluster, ("yes",), "", (Item("accuracy", value),))

    rows = [one("count", "1", 1), one("count", "1", 1), one("count", "2", 1), one("count", "2", 0),
            one("code_reasoning", "3", 0), one("code_reasoning", "3", 1)]  # fmt: skip
    assert BENCHMARKS["mme"].metrics(rows) == {
        "count": 125.0, "code_reasoning": 50.0, "perception": 125.0, "cognition": 50.0,
    }  # fmt: skip
    pairs = [("Yes", "yes"), ("Yes", "no"), ("No", "yes"), ("No", "no"), ("Yes", "yes")]
    scored = [Scored("", str(i), (right,), said, ()) for i, (said, right) in enumerate(pairs)]
    metrics = BENCHMARKS["pope"].metrics(scored)
    assert metrics == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes ratio": 0.6})
