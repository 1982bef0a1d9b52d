"""report.html: one file with its own style and drawings, and pictures as data URLs."""

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..geneval.published import Figures
from .data import NAMES, Failure, Report, Score, percent, span, verdict
from .style import STYLE

THUMBNAIL = 384
_HUES = (211, 28, 140, 325, 265, 175, 0, 50)  # of the boxes, by class, in order of appearance


def render(report: Report, about_intervals: str) -> str:
    """The whole page. Everything that a run brings is escaped."""
    body = [
        _header(report),
        _chart(report, about_intervals),
        _figures(report),
        _gallery(report),
        _not_scored(report),
        _recipe(report),
    ]
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(part for part in body if part)}</main></body></html>\n"
    )


def _header(report: Report) -> str:
    if report.comparable:
        badge = '<span class="badge good">GenEval</span>'
        why = "The official prompts, all of them, seen by the official detector."
    else:
        badge = '<span class="badge warn">Not comparable with GenEval</span>'
        listed = "; ".join(report.obstacles)
        why = f"{escape(listed[0].upper() + listed[1:])}."
    overall = report.overall
    facts = (
        ("overall", percent(overall.share), f"{report.level:.0%} interval {span(overall.interval)}"),
        ("pictures", f"{overall.images:,}", f"{overall.correct:,} correct"),
        ("prompts", f"{overall.prompts:,}", f"{percent(report.correct_prompts)} with a correct picture"),
    )
    tiles = "".join(
        f'<div class="tile"><span class="what">{what}</span><b>{value}</b><span>{more}</span></div>'
        for what, value, more in facts
    )
    return (
        f"<header><h1>{escape(report.title)}</h1><p>{badge} {why}</p>"
        f'<p class="quiet">Detector: {escape(report.detector)}</p></header>'
        f'<section class="tiles">{tiles}</section>'
    )


def _chart(report: Report, about: str) -> str:
    rows = "".join(_bar(score, report) for score in report.scores)
    axis = "".join(f"<span>{tick}</span>" for tick in ("0", "25", "50", "75", "100%"))
    marks = ""
    if report.published or report.reproduced:
        marks = (
            '<p class="quiet"><i class="key tick"></i> published &ensp; '
            '<i class="key ring"></i> reproduced by others</p>'
        )
    absent = ""
    if report.absent:
        absent = f"<p>No picture of these kinds: {', '.join(NAMES[tag] for tag in report.absent)}.</p>"
    return (
        f'<section><h2>By kind</h2><div class="chart">{rows}{_bar(report.overall, report)}'
        f'<div class="bar axis"><span></span><div class="ticks">{axis}</div><span></span></div></div>'
        f'{marks}{absent}<p class="quiet">Thin lines: {report.level:.0%} intervals. {escape(about)}</p>'
        "</section>"
    )


def _bar(score: Score, report: Report) -> str:
    """A row of the chart: name, drawing, value. The drawing is in percent of its width."""
    low, high, value = (100 * x for x in (*score.interval, score.share))
    label = f"{NAMES[score.tag]}: {percent(score.share)}, interval {span(score.interval)}"
    shapes = [
        '<rect class="ground" width="100" height="20"/>',
        f'<rect class="value" width="{value:.2f}" height="20"/>',
        f'<path class="span" d="M{low:.2f} 10H{high:.2f}M{low:.2f} 5V15M{high:.2f} 5V15"/>',
    ]
    for source, kind in ((report.published, "tick"), (report.reproduced, "ring")):
        if source is not None and score.tag in source.values:
            at = 100 * source.values[score.tag]
            shapes.append(f'<path class="{kind}" d="M{at:.2f} 0V20"/>')
    return (
        f'<div class="bar {"overall" if score.tag == "overall" else ""}"><span>{NAMES[score.tag]}</span>'
        f'<svg viewBox="0 0 100 20" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'{"".join(shapes)}</svg><span class="number">{percent(score.share)}</span></div>'
    )


def _figures(report: Report) -> str:
    sources = [("published", report.published), ("reproduced", report.reproduced)]
    heads = ["kind", "score", "interval", "correct", "prompts"]
    shown = [(word, source) for word, source in sources if source is not None]
    heads += [word for word, _ in shown] + ["not told apart from"]
    rows = "".join(
        _figures_row(score, [source for _, source in shown], len(report.scores))
        for score in (*report.scores, report.overall)
    )
    note = "Published and independently reproduced figures: not comparable, so they are not shown."
    if report.comparable:
        note = (
            "A published figure has no interval of its own; it is not told apart where it lies inside ours. "
            "Two kinds are not told apart where the interval of their difference holds 0."
        )
    table = f"<table><thead><tr>{_cells('th', heads)}</tr></thead><tbody>{rows}</tbody></table>"
    return (
        f'<section><h2>Figures</h2><div class="scroll">{table}</div><p class="quiet">{note}</p>'
        f"{_others(report)}</section>"
    )


def _figures_row(score: Score, sources: list[Figures], kinds: int) -> str:
    counts = [f"{score.correct} of {score.images}", str(score.prompts)]
    row = _cells("td", [NAMES[score.tag], percent(score.share), span(score.interval), *counts])
    for source in sources:
        value = source.values.get(score.tag)
        told = "not given" if value is None else f"{percent(value)}<small>{verdict(score, value)}</small>"
        row += f'<td class="other">{told}</td>'
    alike = ", ".join(NAMES[tag] for tag in score.alike)
    if len(score.alike) == kinds - 1 > 1:
        alike = "any other kind"
    if not alike and score.tag != "overall" and kinds > 1:
        alike = "none: told apart from all"
    return f'<tr class="{score.tag}">{row}{_cells("td", [alike])}</tr>'


def _others(report: Report) -> str:
    if not report.others:
        return ""
    head = _cells("th", ["model", *NAMES.values()])
    rows = ""
    for other in report.others:
        values = [f"{other.values[tag]:.2f}" if tag in other.values else "" for tag in NAMES]
        if verdict(report.overall, other.values["overall"]) == "not told apart":
            values[-1] += " (inside our interval)"
        rows += f"<tr>{_cells('td', [other.model, *values])}</tr>"
    sources = {row.source for row in (*report.others, *([report.reproduced] if report.reproduced else []))}
    told = " ".join(f"{escape(source)}." for source in sorted(sources))
    return (
        f'<h3>Published figures</h3><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><p class="quiet">Sources: {told}</p>'
    )


def _gallery(report: Report) -> str:
    if not report.failures:
        return '<section><h2>Failures</h2><p class="quiet">None.</p></section>'
    cards = "".join(_card(failure) for failure in report.failures)
    count = f"{len(report.failures)} of {report.failed:,}"
    return (
        f"<section><h2>Failures <small>{count} shown, spread over the kinds</small></h2>"
        '<p class="quiet">Boxes: what counts, scored above 0.3 (above 0.9 where things are counted).</p>'
        f'<div class="cards">{cards}</div></section>'
    )


def _card(failure: Failure) -> str:
    reasons = "".join(f"<li>{escape(line)}</li>" for line in failure.reason.splitlines())
    return (
        f'<figure>{_picture(failure)}<figcaption><span class="kind">{NAMES[failure.tag]}</span>'
        f"<q>{escape(failure.prompt)}</q><ul>{reasons}</ul><code>{escape(failure.filename)}</code>"
        "</figcaption></figure>"
    )


def _picture(failure: Failure) -> str:
    loaded = _load(failure.picture) if failure.picture is not None else None
    if loaded is None:
        return '<div class="frame lost">picture not found, or unreadable</div>'
    url, width, height = loaded
    classes = list(dict.fromkeys(cls for cls, _ in failure.boxes))
    line = max(width, height)
    drawn = "".join(
        _box(cls, box, _HUES[classes.index(cls) % len(_HUES)], line)
        for cls, box in failure.boxes
        if len(box) == 5
    )
    return (
        f'<div class="frame"><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(failure.prompt)}">'
        f'<image href="{url}" width="{width}" height="{height}"/>{drawn}</svg></div>'
    )


def _box(cls: str, box: list[float], hue: int, line: int) -> str:
    """A frame and its name, in pixels of the picture; `line` is its longer side."""
    x0, y0, x1, y1, score = (float(number) for number in box)
    size = line / 22
    text = f"{cls} {score:.2f}"
    room = 0.56 * size * len(text) + 0.5 * size
    left = max(0.0, min(x0, line - room))
    top = y0 - 1.25 * size if y0 > 1.25 * size else y0
    return (
        f'<g style="--hue:{hue}"><rect class="box" x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" '
        f'height="{y1 - y0:.1f}"/><rect class="tag" x="{left:.1f}" y="{top:.1f}" width="{room:.1f}" '
        f'height="{1.25 * size:.1f}"/><text x="{left + 0.25 * size:.1f}" y="{top + 0.95 * size:.1f}" '
        f'font-size="{size:.1f}">{escape(text)}</text></g>'
    )


def _load(path: Path) -> tuple[str, int, int] | None:
    """(data URL of a thumbnail, width and height of the picture itself), or None for an unreadable file."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    width, height = image.size
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream, form = io.BytesIO(), "PNG" if max(width, height) <= 160 else "JPEG"
    image.save(stream, form, **({} if form == "PNG" else {"quality": 85}))
    content = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/{form.lower()};base64,{content}", width, height


def _not_scored(report: Report) -> str:
    if not report.not_scored:
        return ""
    lines = "".join(f"<li>{escape(line)}</li>" for line in report.not_scored[:50])
    more = f"<p>and {len(report.not_scored) - 50} more</p>" if len(report.not_scored) > 50 else ""
    count = len(report.not_scored)
    return f"<section><h2>Not scored <small>{count}</small></h2><ul>{lines}</ul>{more}</section>"


def _recipe(report: Report) -> str:
    if not report.recipe:
        return '<section><h2>Recipe</h2><p class="quiet">Not known: the pictures were imported.</p></section>'
    rows = "".join(
        f"<tr><th>{escape(k)}</th><td><code>{escape(v)}</code></td></tr>" for k, v in report.recipe
    )
    return f'<section><h2>Recipe</h2><div class="scroll"><table class="recipe">{rows}</table></div></section>'


def _cells(kind: str, texts: list[str]) -> str:
    return "".join(f"<{kind}>{escape(text)}</{kind}>" for text in texts)
