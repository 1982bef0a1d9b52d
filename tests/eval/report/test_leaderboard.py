"""The leaderboard: which runs share a table, in which order, and what is said of the rest."""

import json
from pathlib import Path

import pytest
from bifrons.apps.cli.main import main
from bifrons.eval.geneval.options import ScorerOptions
from bifrons.eval.geneval.schema import TAGS
from bifrons.eval.geneval.suites import lines_sha256
from bifrons.eval.report.leaderboard import read_boards
from bifrons.eval.runs.score import score_file

from .runs import OFFICIAL, RIGHT, make_run, official_recipe, prompt_row

WORSE = {tag: count // 3 for tag, count in RIGHT.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two GenEval runs, an import, one with other options and two of the world of shapes."""
    root = tmp_path_factory.mktemp("runs")
    shapes = {"name": "shapes", "comparable": False, "fingerprint": "s"}
    other = {**OFFICIAL, "comparable": False, "official": True}
    recipes = {
        "good": (RIGHT, official_recipe(), OFFICIAL),
        "bad": (WORSE, official_recipe(model="me/worse"), OFFICIAL),
        "import": (RIGHT, None, OFFICIAL),
        "options": (RIGHT, official_recipe(), other),
        "nano": (RIGHT, official_recipe(suite="shapes", model="janus-nano"), shapes),
        "nano2": (WORSE, official_recipe(suite="shapes", model="janus-nano"), shapes),
    }
    made = [make_run(root / name, *arguments) for name, arguments in recipes.items()]
    options = root / "options"
    score_file(options / "detections.jsonl", options / "results.jsonl", options=ScorerOptions(threshold=0.4))
    (root / "import" / "run.json").write_text(
        json.dumps({"kind": "import", "model": "Painter_3 & co", "note": "30 steps <b>"})
    )
    return made


@pytest.fixture(autouse=True, scope="module")
def short_suite():
    official = lines_sha256([prompt_row(tag, "a photo of a cow", i) for tag in TAGS for i in range(20)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bifrons.eval.report.obstacles.is_official", lambda digest: digest == official)
        yield


def test_only_comparable_runs_share_a_table_and_the_best_comes_first(folders: list[Path]) -> None:
    geneval, *others = read_boards(folders)
    assert geneval.title == "GenEval"
    assert geneval.comparable
    own = [entry for entry in geneval.entries if entry.folder]
    assert [entry.rank for entry in own] == [1, 2, 3]
    assert {entry.name for entry in own[:2]} == {"deepseek-ai/Janus-Pro-1B", "Painter_3 & co"}
    assert own[2].name == "me/worse"
    assert [entry.ties for entry in own] == [(2,), (1,), ()]
    overall = [entry.shares["overall"] for entry in geneval.entries]
    assert overall == sorted(overall, reverse=True)
    assert {entry.name for entry in geneval.entries if not entry.folder} >= {"SDXL", "Janus-Pro-7B"}
    assert [len(board.entries) for board in others] == [1, 2]
    assert others[0].obstacles == ("the scorer's option threshold is 0.4, officially 0.3",)
    assert "the suite is shapes" in " ".join(others[1].obstacles)
    assert [entry.name for entry in others[1].entries] == ["janus-nano (nano)", "janus-nano (nano2)"]


def test_page_and_rows(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(folder) for folder in folders]
    for name in ("page.html", "table.md", "rows.tex"):
        assert main(["eval", "leaderboard", *paths, "-o", str(tmp_path / name)]) == 0
    html, table, rows = ((tmp_path / name).read_text() for name in ("page.html", "table.md", "rows.tex"))
    assert "<script" not in html
    assert "http" not in html
    assert "30 steps &lt;b&gt;" in html
    assert html.count('class="published"') == 6
    assert html.count("Not comparable") == 2
    assert '<td class="n whole">67.5%<small>' in html
    assert r"Painter\_3 & co | 0.95 | 0.70 | 0.50 | 0.90 | 0.45 | 0.55 | 0.67 |" in table
    assert r"Painter\_3 \& co & 0.95 & 0.70 & 0.50 & 0.90 & 0.45 & 0.55 & 0.67 \\" in rows
    assert r"model & single object & two objects & counting & colours & position" in rows
    capsys.readouterr()
    assert main(["eval", "leaderboard", *paths]) == 0
    assert capsys.readouterr().out.strip() == table.strip()


def test_refusals(tmp_path: Path, folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "leaderboard", str(folders[0]), "-o", str(tmp_path / "page.pdf")]) == 2
    assert "accepted: a name that ends in .html, .md, .tex" in capsys.readouterr().err
    assert main(["eval", "leaderboard", str(tmp_path)]) == 1
    assert "bifrons eval score" in capsys.readouterr().err
