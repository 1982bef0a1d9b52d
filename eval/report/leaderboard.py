"""A leaderboard of scored runs: a table for those that can be compared with each other, best first."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...blocks.errors import BifronsError, OptionError
from ..atomic_io import read_json, write_file
from ..geneval.intervals import Interval
from ..geneval.multiple import compare_all
from ..geneval.paired import label
from ..geneval.published import PUBLISHED
from ..suites.compare import read_scored
from .data import read_report
from .facts import latex_row, latex_text, leaderboard_row
from .render import KIND_NAMES, kinds_of, percent, plain, template_environment

FORMS = {".html": "leaderboard.html.j2", ".md": "leaderboard.md.j2", ".tex": "leaderboard.tex.j2"}


@dataclass(frozen=True)
class Entry:
    """A run, or figures that others published, which have no folder and no intervals.

    shares, intervals: by column, where there is a score. obstacles: why it can't be compared with published
    figures. ties: the ranks of the runs in its table whose overall scores can't be told apart from its own;
    None where that is not known.
    """

    name: str
    shares: Mapping[str, float]
    intervals: Mapping[str, Interval]
    folder: Path | None = None
    prompts: int = 0
    images: int = 0
    remark: str = ""
    obstacles: tuple[str, ...] = ()
    rank: int | None = None
    ties: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Board:
    """Runs whose scores can be compared. columns: (key, heading), in order. judged_by: the detector or judge.
    obstacles: why none of them can be compared with published figures."""

    title: str
    judged_by: str
    columns: tuple[tuple[str, str], ...]
    obstacles: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def comparable(self) -> bool:
        """Whether these scores may be compared with published ones."""
        return not self.obstacles

    @property
    def markdown_rows(self) -> list[str]:
        """A row of a Markdown table for each entry."""
        keys = [key for key, _ in self.columns]
        return [leaderboard_row(plain(entry.name), entry.shares, keys) for entry in self.entries]

    @property
    def latex_rows(self) -> list[str]:
        """A row of a LaTeX table for each entry."""
        keys = [key for key, _ in self.columns]
        return [latex_row(entry.name, entry.shares, keys) for entry in self.entries]


def write_leaderboard(folders: Sequence[Path], output: Path | None) -> str:
    """The leaderboard of scored run folders, written to `output` as .html, .md or .tex; Markdown without one.

    Returns the text. Raises BifronsError where a run is not scored, OptionError for another ending.
    """
    form = ".md" if output is None else output.suffix
    if form not in FORMS:
        raise OptionError(
            f"the leaderboard's file is {output}; accepted: a name that ends in {', '.join(FORMS)}"
        )
    environment = template_environment()
    environment.filters.update(latex=latex_text, percent=percent, plain=plain, range=_range)
    text = environment.get_template(FORMS[form]).render(boards=read_boards(folders))
    if output is not None:
        write_file(output, text.encode())
    return text


def read_boards(folders: Sequence[Path]) -> list[Board]:
    """A table for each set of runs that can be compared, those that published figures may stand beside first.

    Runs are compared that scored the same prompts by the same detector or judge, with the same options.
    """
    boards: dict[tuple[str, ...], Board] = {}
    for path in folders:
        key, board = _suite_board(path) if os.path.isfile(path / "judge.json") else _geneval_board(path)
        if key in boards:
            columns = dict(boards[key].columns) | dict(board.columns)
            last = ("overall", columns.pop("overall"))
            entries = boards[key].entries + board.entries
            boards[key] = replace(board, columns=(*columns.items(), last), entries=entries)
        else:
            boards[key] = board
    return sorted(map(_finished, boards.values()), key=lambda board: (not board.comparable, board.title))


def _geneval_board(path: Path) -> tuple[tuple[str, ...], Board]:
    """The table of one run with a detector, and what it shares with others of the same table."""
    report = read_report(path, 0)
    scores = {score.tag: score for score in (*report.scores, report.overall)}
    entry = Entry(
        report.model or path.resolve().name,
        {tag: score.share for tag, score in scores.items()},
        {tag: score.interval for tag, score in scores.items()},
        path,
        report.overall.prompts,
        report.overall.images,
        report.note or "",
        report.obstacles,
    )
    columns = tuple((tag, KIND_NAMES[tag]) for tag in kinds_of(report))
    title = "GenEval" if report.comparable else "GenEval-style"
    board = Board(title, f"detector: {report.detector}", columns, report.obstacles, (entry,))
    return (title,) if report.comparable else (title, *report.conditions), board


def _suite_board(path: Path) -> tuple[tuple[str, ...], Board]:
    """The table of one judged run, and what it shares with others of the same table."""
    if not os.path.isfile(path / "summary.json"):
        raise BifronsError(f"{path} has no summary.json; accepted: a run that `bifrons eval score` scored")
    summary = read_json(path / "summary.json")
    try:
        groups = {name: group for name, group in summary["groups"].items() if "/" not in name}
        shares = {name: float(group["score"]) for name, group in groups.items()}
        spans = {name: Interval(*map(float, group["interval"])) for name, group in groups.items()}
        if summary["overall"] is not None:
            shares["overall"] = float(summary["overall"])
            spans["overall"] = Interval(*map(float, summary["overall_interval"]))
        obstacles = tuple(map(str, summary["obstacles"]))
        model, title, judge = (
            str(x) for x in (summary["recipe"]["model"], summary["title"], summary["judge"]["model"])
        )
        entry = Entry(model, shares, spans, path, summary["prompts"], summary["images"], "", obstacles)
        prompts = str(summary["recipe"]["prompts_sha256"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BifronsError(f"{path / 'summary.json'} is no summary of a judged run: {error!r}") from error
    published = [
        Entry(str(figures["model"]), {"overall": float(figures["score"])}, {}, remark=str(figures["source"]))
        for figures in summary.get("published", ())
    ]
    columns = tuple((name, name.replace("_", " ")) for name in (*groups, "overall"))
    board = Board(title, f"judge: {judge}", columns, obstacles, (entry, *(() if obstacles else published)))
    alike = {key: summary.get(key) for key in ("judge", "wording", "official_switch")}
    return (title, prompts, json.dumps(alike, sort_keys=True)), board


def _finished(board: Board) -> Board:
    """The board with published figures, names that differ, ranks and ties, sorted by the overall score."""
    own = [entry for entry in board.entries if entry.folder is not None]
    others = {entry.name: entry for entry in board.entries if entry.folder is None}
    if board.title == "GenEval":
        others = {row.model: Entry(row.model, row.values, {}, remark=row.source) for row in PUBLISHED}
    own = _named_apart(own)
    own.sort(key=lambda entry: -entry.shares.get("overall", -1.0))
    own = [replace(entry, rank=rank) for rank, entry in enumerate(own, 1)]
    entries = sorted(
        [*_with_ties(own), *others.values()], key=lambda entry: -entry.shares.get("overall", -1.0)
    )
    shared = set(own[0].obstacles).intersection(*(entry.obstacles for entry in own))
    obstacles = tuple(text for text in own[0].obstacles if text in shared)
    return replace(board, entries=tuple(entries), obstacles=obstacles or board.obstacles)


def _range(interval: Interval) -> str:
    """An interval in percent, short."""
    return f"{100 * interval.low:.1f}\u2013{100 * interval.high:.1f}"


def _named_apart(entries: list[Entry]) -> list[Entry]:
    """The entries, of which those of the same name get their folders', as far as these differ."""
    names = [entry.name for entry in entries]
    folders = [entry.folder.resolve() if entry.folder else Path() for entry in entries]
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(set(folders)):
        depth += 1
    return [
        replace(entry, name=f"{entry.name} ({Path(*folder.parts[-depth:])})")
        if names.count(entry.name) > 1
        else entry
        for entry, folder in zip(entries, folders, strict=True)
    ]


def _with_ties(entries: list[Entry]) -> list[Entry]:
    """Runs with the ranks of those whose overall scores can't be told apart: paired by prompt, Holm."""
    folders = [entry.folder for entry in entries if entry.folder is not None]
    if len(folders) < 2:
        return entries
    try:
        found = compare_all([read_scored(path, label(number)) for number, path in enumerate(folders)])
    except BifronsError:
        return entries  # no prompt is common
    ties: dict[int, set[int]] = {number: set() for number in range(len(entries))}
    for pair in found.pairs.get("overall", ()):
        if pair.too_few or not pair.significant:
            ties[pair.first].add(pair.second + 1)
            ties[pair.second].add(pair.first + 1)
    known = "overall" in found.pairs
    return [replace(entry, ties=tuple(sorted(ties[n])) if known else None) for n, entry in enumerate(entries)]
