"""DPG-Bench (Hu et al. 2024, arXiv 2403.05135): 1,065 long prompts, each with questions that depend on each
other, four pictures of each (the official file of a prompt is their 2 x 2 grid)."""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...blocks.errors import BifronsError
from ..atomic_io import read_file
from ..geneval.suites import Row
from .questions import Answer, Question, UnclearAnswer, says_yes
from .suite import Figures, Item, Suite, Wording

_COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")


def read(path: Path) -> list[Row]:
    """The rows of dpg_bench.csv, one a prompt: {prompt, item_id, questions, first}.

    questions: {id, question, parents, category} each, the category as in "entity - whole". first: the id in
    the file's first line, in that row alone, where git_blob has the file's name in git. Raises BifronsError
    with the line's number.
    """
    content = read_file(path)
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BifronsError(f"{path} is no text in UTF-8: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise BifronsError(f"{path} has no column {', '.join(missing)}; accepted: dpg_bench.csv")
    rows: dict[str, Row] = {}
    try:
        for line in reader:
            where = f"{path} line {reader.line_num}"
            question = _question(line, where)
            fresh: Row = {"prompt": line["text"].strip(), "item_id": line["item_id"], "questions": []}
            if not rows:
                fresh |= {"first": question["id"], "git_blob": blob}
            row = rows.setdefault(line["item_id"], fresh)
            # As officially, the last of several lines with one proposition_id counts, in the first's place.
            row["questions"] = [
                *{**{q["id"]: q for q in row["questions"]}, question["id"]: question}.values()
            ]
    except csv.Error as error:
        raise BifronsError(f"{path} is no CSV: {error}") from error
    for row in rows.values():
        ids = {question["id"] for question in row["questions"]}
        odd = [q["id"] for q in row["questions"] if not ids >= {*q["parents"]}]
        if odd:
            raise BifronsError(f"{path}: {row['item_id']} question {odd[0]} depends on one that is not there")
    return list(rows.values())


def _question(line: Mapping[str, str | None], where: str) -> Row:
    if any(not (line.get(name) or "").strip() for name in _COLUMNS):
        raise BifronsError(f"{where} lacks one of {', '.join(_COLUMNS)}")
    values = {name: str(line[name]).strip() for name in _COLUMNS}
    try:
        number = int(values["proposition_id"])
        parents = [int(part) for part in values["dependency"].split(",")]
    except ValueError as error:
        raise BifronsError(f"{where}: proposition_id or dependency is no number: {error}") from error
    return {
        "id": number,
        "question": values["question_natural_language"],
        "parents": [parent for parent in parents if parent != 0],
        "category": values["tuple"].split("(")[0].strip(),
    }


def ask(row: Row, wording: Wording) -> list[Question]:
    """Every question, as the file words it."""
    return [wording.ask(8, question=question["question"]) for question in row["questions"]]


def score(row: Row, answers: Sequence[Answer], last: bool, official: bool) -> list[Item]:
    """The share of yes, where a question counts 0 if one that it depends on does; and by category.

    official: as the official script, which leaves out the file's first line, and adds up categories from the
    answers for the last picture, before any is set to 0. Raises UnclearAnswer where the script would fail on
    a question that depends on the one left out.
    """
    values = {
        question["id"]: float(_is_yes(answer))
        for question, answer in zip(row["questions"], answers, strict=True)
    }
    questions = row["questions"]
    if official and "first" in row:
        questions = [question for question in questions if question["id"] != row["first"]]
        del values[row["first"]]
    if not questions:
        return []
    plain = dict(values)
    _apply_dependencies(questions, values, repeat=not official)
    by_category = plain if official else values
    items = [Item("dpg", sum(values.values()) / len(values))]
    if last or not official:
        for question in questions:
            value, category = by_category[question["id"]], question["category"]
            items += [Item(f"L1/{category.split('-')[0].strip()}", value), Item(f"L2/{category}", value)]
    return items


def _apply_dependencies(questions: Sequence[Row], values: dict[int, float], repeat: bool) -> None:
    """Set the values of questions to 0 that depend on one with 0; officially once, in the file's order."""
    while True:
        before = dict(values)
        for question in questions:
            for parent in question["parents"]:
                if parent not in values:
                    raise UnclearAnswer(
                        f"question {question['id']} depends on {parent}, in the file's first line, which the "
                        "official script leaves out"
                    )
                if values[parent] == 0:
                    values[question["id"]] = 0.0
                    break
        if not repeat or values == before:
            return


def _is_yes(answer: Answer) -> bool:
    """As officially, all but a yes counts as no. Marks and case don't matter."""
    try:
        return says_yes(answer)
    except UnclearAnswer:
        return False


GIT_BLOB = "98457fc9901943f51ff9a30367250fc292533bed"
"""The name in git of dpg_bench.csv at 3c228f1: SHA-1 of "blob SIZE", a zero byte and the file."""
_JANUS_PRO = "Janus-Pro report (arXiv 2501.17811), table 5"

DPG = Suite(
    name="dpg",
    title="DPG-Bench",
    source="https://github.com/TencentQQGYLab/ELLA (3c228f1, dpg_bench), arXiv 2403.05135",
    license="Apache 2.0",
    formula="a question scores 1 for yes, 0 where one that it depends on scores 0; a picture the mean of its "
    "questions; overall the mean over pictures",
    files="dpg_bench.csv",
    judge="mplug_visual-question-answering_coco_large_en",
    read=read,
    ask=ask,
    score=score,
    weights=lambda groups: {"dpg": 1.0},
    wording=Wording("{question}"),
    official_wording=Wording("{question}").sha256,
    fields=("question",),
    prompts=1065,
    is_official=lambda rows: rows[0].get("git_blob") == GIT_BLOB,
    images_per_prompt=4,
    has_official_switch=True,
    published=(
        Figures("SDXL", 0.7465, _JANUS_PRO),
        Figures("DALL-E 3", 0.8350, _JANUS_PRO),
        Figures("SD3-Medium", 0.8408, _JANUS_PRO),
        Figures("Janus", 0.7968, _JANUS_PRO),
        Figures("Janus-Pro-1B", 0.8263, _JANUS_PRO),
        Figures("Janus-Pro-7B", 0.8419, _JANUS_PRO),
    ),
)
