"""The report of a scored run: report.md, and report.html that needs nothing but itself."""

from pathlib import Path

from ..atomic_io import write_whole
from .data import NAMES, Report, Score, percent, read_report, span, verdict
from .render import render

MOST_FAILURES = 24

INTERVALS = (
    "Intervals are for the score over prompts of that kind: a bootstrap over prompts (a prompt's pictures "
    "stay together, kinds apart) gives the variance, Wilson's limits at the effective sample size the ends."
)


def write_report(run_dir: Path) -> tuple[Path, Path]:
    """Write report.md and report.html into a run folder from its results.jsonl and summary.json.

    Also reads run.json (the recipe), detect.json (the detector) and the pictures, where they are there: an
    imported run has no recipe, and a picture that is gone leaves a note. Raises BifronsError where the run
    is not scored, or the disk refuses. Returns both paths.
    """
    report = read_report(run_dir, MOST_FAILURES)
    written = run_dir / "report.md", run_dir / "report.html"
    write_whole(written[0], markdown(report, run_dir).encode())
    write_whole(written[1], render(report, INTERVALS).encode())
    return written


def markdown(report: Report, run_dir: Path) -> str:
    """The report as Markdown; pictures are linked relative to the run folder where they lie in it."""
    parts = [
        f"# {_plain(report.title)}",
        "\n".join(status_lines(report)),
        "\n".join(_table(report)),
        INTERVALS,
        "\n".join(f"- {line}" for line in comparisons(report)),
    ]
    if report.others:
        parts += ["## Published figures", "\n".join(_others(report))]
    parts += [f"## Failures ({len(report.failures)} of {report.failed} shown)"] if report.failures else []
    parts += [_failures(report, run_dir)] if report.failures else []
    if report.not_scored:
        shown = [f"- {_plain(line)}" for line in report.not_scored[:50]]
        parts += [f"## Not scored ({len(report.not_scored)})", "\n".join(shown)]
    parts += ["## Recipe", _recipe(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def status_lines(report: Report) -> list[str]:
    """What the score may be called, and by whose eyes."""
    if report.comparable:
        called = "This is a GenEval score: the official prompts, all of them, seen by the official detector."
    else:
        called = f"**Not comparable with GenEval**: {_plain('; '.join(report.obstacles))}."
    return [called, "", f"Detector: {_plain(report.detector)}."]


def comparisons(report: Report) -> list[str]:
    """What can and can't be told apart, one statement a line."""
    lines = []
    for source, word in ((report.published, "published"), (report.reproduced, "reproduced by others")):
        if source is None:
            continue
        for score in (*report.scores, report.overall):
            if score.tag in source.values:
                value = source.values[score.tag]
                ours = f"{percent(score.share)} ({span(score.interval)})"
                told = verdict(score, value)
                lines.append(f"{NAMES[score.tag]}: {ours} against {percent(value)} {word}: {told}")
    for other in report.others:
        if (
            other is not report.published
            and verdict(report.overall, other.values["overall"]) == "not told apart"
        ):
            lines.append(
                f"overall: {percent(other.values['overall'])} of {other.model} lies inside the interval"
            )
    pairs = sorted({tuple(sorted((score.tag, tag))) for score in report.scores for tag in score.alike})
    if pairs and all(len(score.alike) == len(report.scores) - 1 for score in report.scores):
        lines.append("none of this run's kinds can be told apart from another")
    elif pairs:
        told = ", ".join(f"{NAMES[a]} and {NAMES[b]}" for a, b in pairs)
        lines.append(f"kinds of this run that can't be told apart: {told}")
    if report.absent:
        lines.append(f"no picture of these kinds: {', '.join(NAMES[tag] for tag in report.absent)}")
    return lines


def _table(report: Report) -> list[str]:
    columns = [(word, source) for word, source in _sources(report) if source is not None]
    head = [
        "kind",
        "score",
        f"{report.level:.0%} interval",
        "correct",
        "prompts",
        *(word for word, _ in columns),
    ]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for score in (*report.scores, report.overall):
        cells = [*_cells(score), *(_cell(source.values.get(score.tag)) for _, source in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    if not report.comparable:
        lines += ["", "Published and reproduced figures: not comparable, so they are not shown."]
    return lines


def _sources(report: Report):
    return (("published", report.published), ("reproduced", report.reproduced))


def _cells(score: Score) -> list[str]:
    return [
        NAMES[score.tag],
        percent(score.share),
        span(score.interval),
        f"{score.correct} of {score.images}",
        str(score.prompts),
    ]


def _cell(value: float | None) -> str:
    return "not given" if value is None else percent(value)


def _others(report: Report) -> list[str]:
    tags = [*NAMES]
    lines = [f"| model | {' | '.join(NAMES[tag] for tag in tags)} |", f"|{'---|' * (len(tags) + 1)}"]
    for row in report.others:
        lines.append(f"| {row.model} | {' | '.join(_cell(row.values.get(tag)) for tag in tags)} |")
    sources = {row.source for row in (*report.others, *([report.reproduced] if report.reproduced else []))}
    return [*lines, "", *(f"Source: {source}." for source in sorted(sources))]


def _failures(report: Report, run_dir: Path) -> str:
    lines = []
    for failure in report.failures:
        name = f"`{failure.filename}`"
        if failure.picture is not None and failure.picture.is_relative_to(run_dir):
            name = f"[{name}]({failure.picture.relative_to(run_dir).as_posix()})"
        reason = _plain("; ".join(failure.reason.splitlines()))
        lines.append(f"- {name} ({NAMES[failure.tag]}) {_plain(failure.prompt)}: {reason}")
    return "\n".join(lines)


def _recipe(report: Report) -> str:
    if not report.recipe:
        return "Not known: the pictures were imported."
    return "\n".join(
        ["| setting | value |", "|---|---|", *(f"| {k} | {_plain(v)} |" for k, v in report.recipe)]
    )


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: nothing in a prompt may become a link, a tag or a cell's end."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
