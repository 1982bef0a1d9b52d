"""The report of a scored run, from two templates: report.md, and report.html, which needs no other file."""

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from ...blocks.errors import PictureError
from ...blocks.image_io import open_image
from ..atomic_io import write_file
from ..geneval.intervals import Interval
from ..geneval.schema import tags_of_suite
from .data import Failure, Report, Score, read_report, verdict
from .facts import latex_row, leaderboard_row, write_prompts_csv

MAX_FAILURES, MAX_NOT_SCORED = 24, 50
THUMBNAIL = 384
"""Longest side of an embedded image, in pixels."""
SMALL_IMAGE = 160
"""Images up to this side are embedded as PNG, since JPEG would smear their few pixels."""
INTERVALS = (
    "Intervals are for the score over prompts of that kind: beta limits at the effective sample size, for "
    "which pictures of a prompt count by how far they agree."
)
HUES = (211, 28, 140, 325, 265, 175, 0, 50)
"""Of the boxes, by class, in order of appearance."""
KIND_NAMES = {
    "single_object": "single object",
    "two_object": "two objects",
    "counting": "counting",
    "colors": "colours",
    "position": "position",
    "color_attr": "attribute binding",
    "many": "five or six things",
    "chain": "chain of relations",
    "negation": "negation",
    "overall": "overall",
}


class Thumbnail(NamedTuple):
    """A data URL of a scaled-down image, and the size of the image itself."""

    url: str
    width: int
    height: int


class BoxLabel(NamedTuple):
    """A detected box and its caption, in pixels of the image; hue in degrees."""

    hue: int
    box: tuple[float, float, float, float]
    left: float
    top: float
    width: float
    font_size: float
    text: str


def template_environment() -> Environment:
    """Jinja for the templates of reports: HTML is escaped, and an undefined name is an error."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def write_report(run_dir: Path) -> tuple[Path, Path]:
    """Write report.md, report.html and prompts.csv into a run folder from its results.jsonl and summary.json.

    Also reads run.json (the recipe), detect.json (the detector) and the images, where they exist: an
    imported run has no recipe, and an image that is gone leaves a note. Raises BifronsError where the run
    is not scored, or the disk refuses. Returns the paths of the two reports.
    """
    report = read_report(run_dir, MAX_FAILURES)
    environment = template_environment()
    environment.filters.update(
        kind=KIND_NAMES.__getitem__,
        labels=box_labels,
        link=link,
        percent=percent,
        plain=plain,
        span=span,
        tenth="{:.1f}".format,
        thumbnail=thumbnail,
    )
    values: dict[str, Any] = {
        "report": report,
        "run_dir": run_dir,
        "rows": (*report.scores, report.overall),
        "comparisons": comparisons(report),
        "about_intervals": INTERVALS,
        "level": f"{report.level:.0%}",
        "ties": ties,
        "verdict": verdict,
        "kinds": {tag: KIND_NAMES[tag] for tag in kinds_of(report)},
        "max_not_scored": MAX_NOT_SCORED,
        "paper_rows": paper_rows(report),
    }
    write_prompts_csv(run_dir / "prompts.csv", report.rows)
    written = run_dir / "report.md", run_dir / "report.html"
    for path in written:
        write_file(path, environment.get_template(f"{path.name}.j2").render(values).encode())
    return written


def paper_rows(report: Report) -> tuple[str, str]:
    """The scores as a row of a Markdown table and of a LaTeX table."""
    shares = {score.tag: score.share for score in (*report.scores, report.overall)}
    name = "".join(mark for mark in report.model or "imported pictures" if mark not in "<>[]`")
    columns = kinds_of(report)
    return leaderboard_row(name, shares, columns), latex_row(name, shares, columns)


def kinds_of(report: Report) -> tuple[str, ...]:
    """The kinds of the report's suite in their order, and "overall"."""
    return (*tags_of_suite([score.tag for score in report.scores]), "overall")


def comparisons(report: Report) -> list[str]:
    """Which scores differ from each other and from published ones, one statement a line."""
    lines = []
    for heading, figures in report.references:
        source = "reproduced by others" if heading == "reproduced" else heading
        for score in (*report.scores, report.overall):
            if (value := figures.values.get(score.tag)) is not None:
                ours = f"{KIND_NAMES[score.tag]}: {percent(score.share)} ({span(score.interval)})"
                lines.append(f"{ours} against {percent(value)} {source}: {verdict(score, value)}")
    for other in report.others:
        value = other.values["overall"]
        if other is not report.published and verdict(report.overall, value) == "not told apart":
            lines.append(f"overall: {percent(value)} of {other.model} lies inside the interval")
    pairs = sorted({tuple(sorted((score.tag, tag))) for score in report.scores for tag in score.ties})
    if pairs and all(len(score.ties) == len(report.scores) - 1 for score in report.scores):
        lines.append("none of this run's kinds can be told apart from another")
    elif pairs:
        listed = ", ".join(f"{KIND_NAMES[a]} and {KIND_NAMES[b]}" for a, b in pairs)
        lines.append(f"kinds of this run that can't be told apart: {listed}")
    if report.absent:
        lines.append(f"no picture of these kinds: {', '.join(KIND_NAMES[tag] for tag in report.absent)}")
    return lines


def ties(score: Score, report: Report) -> str:
    """The kinds that do not differ from this one, as a table cell."""
    others = len(report.scores) - 1
    if len(score.ties) == others > 1:
        return "any other kind"
    if not score.ties and score.tag != "overall" and others > 0:
        return "none: told apart from all"
    return ", ".join(KIND_NAMES[tag] for tag in score.ties)


def link(failure: Failure, run_dir: Path) -> str:
    """The image's name in Markdown, as a link where its file lies in the run folder."""
    name = f"`{failure.filename}`"
    if failure.image is None or not failure.image.is_relative_to(run_dir):
        return name
    return f"[{name}]({failure.image.relative_to(run_dir).as_posix()})"


def percent(share: float) -> str:
    """A share, 0 to 1, in percent."""
    return f"{share:.1%}"


def span(interval: Interval) -> str:
    """An interval in percent."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}%"


def plain(text: str) -> str:
    """Text escaped for Markdown: nothing in a prompt may become a link, a tag or the end of a table cell."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def thumbnail(path: Path | None) -> Thumbnail | None:
    """The image as a data URL, or None where it is missing or unreadable."""
    if path is None:
        return None
    try:
        image = open_image(path)
    except PictureError:
        return None
    width, height = image.size
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream, kind = io.BytesIO(), "PNG" if max(width, height) <= SMALL_IMAGE else "JPEG"
    image.save(stream, kind, **({} if kind == "PNG" else {"quality": 85}))
    content = base64.b64encode(stream.getvalue()).decode()
    return Thumbnail(f"data:image/{kind.lower()};base64,{content}", width, height)


def box_labels(failure: Failure, width: int, height: int) -> list[BoxLabel]:
    """The boxes of an image of this size, each with a caption above it where there is room, else in or below
    it: inside the image as far as it fits, and not over an earlier caption."""
    classes = list(dict.fromkeys(cls for cls, _ in failure.boxes))
    size = max(width, height) / 22
    line = 1.25 * size
    labels: list[BoxLabel] = []
    for cls, box in failure.boxes:
        if len(box) != 5:
            continue
        x0, y0, x1, y1, score = map(float, box)
        text = f"{cls} {score:.2f}"
        length = 0.66 * size * len(text) + 0.5 * size
        left = max(0.0, min(x0, width - length))
        tops = [top for top in (y0 - line, y0, y1, y1 - line) if 0 <= top <= height - line] or [y0]
        free = (top for top in tops if not any(_covers(label, left, top, length, line) for label in labels))
        hue = HUES[classes.index(cls) % len(HUES)]
        top = next(free, tops[0])
        labels.append(BoxLabel(hue, (x0, y0, x1 - x0, y1 - y0), left, top, length, size, text))
    return labels


def _covers(label: BoxLabel, left: float, top: float, width: float, height: float) -> bool:
    """Whether a caption lies over this rectangle."""
    beside = left >= label.left + label.width or left + width <= label.left
    return not beside and abs(top - label.top) < height
