"""The report: what it says of comparable and other runs, of odd ones, and that nothing in it can act."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from bifrons.blocks.errors import BifronsError
from bifrons.eval.geneval.intervals import Interval
from bifrons.eval.geneval.options import ScorerOptions
from bifrons.eval.geneval.schema import TAGS
from bifrons.eval.geneval.suites import lines_sha256
from bifrons.eval.report.data import Failure, Score, differ, sample_rows
from bifrons.eval.report.render import box_labels, write_report
from bifrons.eval.runs.score import score_file
from PIL import Image

from .runs import OFFICIAL, RIGHT, make_run, official_recipe, prompt_row


def both(root: Path) -> tuple[str, str]:
    written = write_report(root)
    assert [path.name for path in written] == ["report.md", "report.html"]
    return written[0].read_text(), written[1].read_text()


class Reader(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")
        ]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text.append(data)


def words(page: str) -> str:
    return " ".join(" ".join(Reader(page).text).split())


@pytest.fixture(autouse=True, scope="module")
def short_suite():
    """GenEval's suite has 553 prompts; here the 120 that `make_run` takes are all of them."""
    rows = [prompt_row(tag, "a photo of a cow", i) for tag in TAGS for i in range(20)]
    official = lines_sha256(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bifrons.eval.report.obstacles.is_official", lambda digest: digest == official)
        yield


@pytest.fixture(scope="module")
def comparable(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return both(make_run(tmp_path_factory.mktemp("run"), RIGHT, official_recipe(), OFFICIAL))


def test_a_geneval_run_stands_beside_published_and_reproduced_figures(comparable):
    page, html = comparable
    assert page.startswith("# GenEval of deepseek-ai/Janus-Pro-1B\n")
    assert "ot comparable" not in page + html
    row = next(line for line in page.splitlines() if line.startswith("| position "))
    assert row.startswith("| position | 45.0% | ")
    assert row.endswith("| 9 of 20 | 20 | 65.0% | 46.0% |")
    assert "| single object | 95.0% |" in page
    assert "| 98.0% | not given |" in page
    assert "issue 210" in page
    # 45% of 20 prompts: its interval holds both the published 65% and the reproduced 46%
    assert re.search(r"position: 45\.0% \(.*\) against 65\.0% published: not told apart", page)
    assert re.search(r"position: 45\.0% \(.*\) against 46\.0% reproduced by others: not told apart", page)
    assert "SD3-Medium" in words(html)
    assert "65.0% not told apart" in words(html)


def test_a_clear_difference_is_called_one(tmp_path):
    page, _ = both(make_run(tmp_path, {**RIGHT, "position": 1}, official_recipe(), OFFICIAL))
    assert re.search(r"position: 5\.0% \(.*\) against 65\.0% published: ours is lower", page)
    pairs = page.split("can't be told apart: ")[1]
    assert "position" not in pairs.splitlines()[0]
    assert "attribute binding and counting" in pairs


@pytest.mark.parametrize(
    ("recipe", "detector", "obstacle"),
    [
        (official_recipe(suite="shapes"), OFFICIAL, "the suite is shapes"),
        (official_recipe(limit=120), OFFICIAL, "only 120 prompts"),
        (official_recipe(), {"name": "other", "comparable": False}, "not GenEval's official Mask2Former"),
        (official_recipe(), None, "the detector is not known"),
        (official_recipe(), OFFICIAL, "not GenEval's, all of them"),
        (None, OFFICIAL, "not GenEval's, all of them"),
    ],
)
def test_any_obstacle_is_named_and_hides_other_peoples_figures(tmp_path, recipe, detector, obstacle):
    page, html = both(make_run(tmp_path, {"counting": 12}, recipe, detector))
    assert page.startswith("# GenEval-style evaluation of")
    for text in (page, words(html)):
        assert obstacle.lower() in text.lower()
        assert "Not comparable with GenEval" in text
        assert "SDXL" not in text
        assert "65.0%" not in text


def test_imported_pictures_of_all_prompts_make_a_geneval_score(tmp_path):
    root = make_run(tmp_path, RIGHT, None, OFFICIAL)
    page, html = both(root)
    assert page.startswith("# GenEval of imported pictures\n")
    assert "SD3-Medium" in words(html)
    assert "Not known: the pictures were imported." in page
    summary = json.loads((root / "summary.json").read_text())
    summary["not_scored"] = [{"filename": "00003/samples/0001.png", "reason": "unreadable"}]
    (root / "summary.json").write_text(json.dumps(summary))
    assert "something was missing or could not be scored (1, listed below)" in both(root)[0]


def test_the_page_needs_nothing_and_runs_nothing(tmp_path):
    evil = "a <script>alert(1)</script> <img src=x onerror=alert(2)> \"'&| [x](http://e.vil) cow"
    root = make_run(tmp_path, {"counting": 17}, official_recipe(model=evil), {"name": evil}, prompt=evil)
    page, html = both(root)
    found = Reader(html)
    assert not {"script", "img", "link", "iframe", "object", "a", "form"} & set(found.tags)
    assert not found.handlers
    assert all(link.startswith("data:image/") for link in found.links)
    assert len(found.links) == 3 + 8  # failures and successes
    assert (
        " ".join(found.text).count(evil) == 4 + 3 + 8
    )  # title, heading, detector, recipe; a caption a picture
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"(?<!\\)[<\]]", page.replace("[`", "").replace("`](", ""))


def test_failures_are_bounded_drawn_and_explained(comparable, tmp_path):
    _, html = comparable
    assert html.count("<figure>") == 24
    assert "24 of 39 shown" in words(html)
    assert "cow: at least 1 wanted, 0 detected" in words(html)
    boxes = re.findall(r'class="box" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', html)
    assert boxes == [("10.0", "12.0", "20.0", "28.0")] * (24 + 8)
    assert html.count('viewBox="0 0 64 64"') == 24 + 8
    assert words(html).count("dog 0.95") == 24


def test_large_pictures_are_shown_small(tmp_path):
    _, html = both(make_run(tmp_path, {"counting": 19}, official_recipe(), OFFICIAL, side=500))
    assert 'viewBox="0 0 500 500"' in html  # the boxes keep the picture's pixels
    content = base64.b64decode(Reader(html).links[0].split(",")[1])
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (384, 384)


def test_sampled_rows_are_equally_many_of_each_kind_and_evenly_spaced():
    rows = [{"tag": tag, "n": n} for tag, count in (("counting", 10), ("position", 2)) for n in range(count)]
    assert [(row["tag"], row["n"]) for row in sample_rows(rows, 6)] == [
        *(("counting", n) for n in (0, 2, 5, 7)),
        ("position", 0),
        ("position", 1),
    ]
    assert sample_rows(rows, 100) == rows
    assert sample_rows([], 5) == []


def test_odd_runs_still_give_a_report(tmp_path):
    """Imported, one kind, all right; then with a picture gone, one broken, and rows that were not scored."""
    page, html = both(make_run(tmp_path / "a", {"position": 20}, None, None))
    assert "No picture of these kinds: single object, two objects" in words(html)
    assert "## Failures" not in page
    assert "Not known: the pictures were imported." in page

    root = make_run(tmp_path / "b", {"position": 18}, None, None)
    (root / "images/00018/samples/0000.png").unlink()
    (root / "images/00019/samples/0000.png").write_bytes(b"no picture")
    summary = json.loads((root / "summary.json").read_text())
    unread = {"filename": "00077/samples/0001.png", "reason": "unreadable <picture>"}
    summary["not_scored"] = [unread, {"line": 7, "reason": "is not JSON"}]
    (root / "summary.json").write_text(json.dumps(summary))
    page, html = both(root)
    assert html.count("picture not found, or unreadable") == 2
    assert "00077/samples/0001.png: unreadable <picture>" in words(html)
    assert "detections, line 7: is not JSON" in page


def test_other_options_of_the_scorer_are_named(tmp_path):
    """Those of a file scored by itself, which has no detector's record, too."""
    root = make_run(tmp_path, RIGHT, official_recipe(), OFFICIAL)
    options = ScorerOptions(threshold=0.4, bgcolor="white")
    score_file(root / "detections.jsonl", root / "results.jsonl", options=options)
    page, html = both(root)
    for text in (page.replace("\\", ""), words(html)):
        assert "he scorer's option threshold is 0.4, officially 0.3" in text
        assert "he scorer's option bgcolor is white, officially #999" in text
        assert "not GenEval's official Mask2Former" not in text
        assert "counting_threshold" in text.split("Recipe")[1]
    assert "SDXL" not in words(html)


def test_captions_stay_inside_and_apart():
    boxes = (("circle", [70.0, 2.0, 90.0, 30.0, 0.99]), ("circle", [75.0, 4.0, 95.0, 32.0, 0.98]))
    found = box_labels(Failure("f", TAGS[0], "p", "", boxes, None), 100, 200)
    size = 200 / 22
    assert [label.left + label.width for label in found] == pytest.approx([100.0, 100.0])
    assert abs(found[0].top - found[1].top) >= 1.25 * size
    assert all(0 <= label.top <= 200 - 1.25 * size for label in found)


def test_paper_is_white_whatever_the_screen(comparable):
    style = comparable[1].split("<style>")[1].split("</style>")[0]
    assert "@media screen and (prefers-color-scheme:dark)" in style
    assert style.count("prefers-color-scheme") == 1
    assert "color-scheme: light" in style.split("@media print")[1]


def test_an_unscored_run_is_an_error_and_leaves_no_report(tmp_path):
    with pytest.raises(BifronsError, match=r"no results\.jsonl; accepted: .*bifrons eval score"):
        write_report(tmp_path)
    root = make_run(tmp_path / "r", {"position": 18}, None, None)
    with (root / "results.jsonl").open("a") as stream:
        stream.write('{"tag": "position"}\n')
    with pytest.raises(BifronsError, match="line 21 is no results row"):
        write_report(root)
    assert not list(root.glob("report.*"))


def test_scores_differ_by_the_interval_of_their_difference():
    """Overlapping intervals may belong to shares that differ clearly: MOVER's limit by hand."""
    a = Score(TAGS[0], 0.70, Interval(0.62, 0.77), 70, 100, 100)
    b = Score(TAGS[1], 0.58, Interval(0.50, 0.655), 58, 100, 100)
    assert a.interval.low < b.interval.high
    assert differ(a, b)  # 0.12 > sqrt(0.08^2 + 0.075^2) = 0.1097
    c = Score(TAGS[1], 0.60, Interval(0.52, 0.675), 60, 100, 100)
    assert not differ(a, c)
    assert not differ(c, a)  # 0.10 < 0.1097
