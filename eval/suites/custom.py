"""Any file of prompts with questions: `--suite questions --data FILE`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...blocks.errors import BifronsError
from ..geneval.suites import Row
from .questions import NUMBERS, YES, Answer, Question, geometric_mean, probability, says
from .suite import Item, Suite, Wording, read_lines_of_json, text_of

FORMAT = (
    '{"prompt": "...", "questions": [...]} a line; a question is a text, whose answer is yes, or '
    '[question, answer], or {"question", "answer": text or list, "kind"}'
)


def read(path: Path) -> list[Row]:
    """Rows {prompt, questions: [{question, answers, kind}]} of a `.jsonl` file in `FORMAT`."""
    rows = []
    for where, row in read_lines_of_json(path):
        prompt = text_of(row, "prompt", where)
        questions = row.get("questions")
        if not isinstance(questions, list) or not questions:
            raise BifronsError(f"{where}: 'questions' is no list; accepted: {FORMAT}")
        rows.append({"prompt": prompt, "questions": [_question(q, where) for q in questions]})
    return rows


def _question(value: Any, where: str) -> Row:
    if isinstance(value, str):
        value = {"question": value}
    elif isinstance(value, list) and len(value) == 2:
        value = {"question": value[0], "answer": value[1]}
    if not isinstance(value, dict) or not value.keys() <= {"question", "answer", "kind"}:
        raise BifronsError(f"{where}: a question is {value!r}; accepted: {FORMAT}")
    text = text_of(value, "question", where)
    answers = value.get("answer", "yes")
    answers = [answers] if isinstance(answers, str) else answers
    if (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(a, str) and a.strip() for a in answers)
    ):
        raise BifronsError(
            f"{where}: the answer of {text!r} is {answers!r}; accepted: a text or a list of texts"
        )
    kind = value.get("kind")
    if kind is not None:
        text_of(value, "kind", where)
    return {"question": text, "answers": answers, "kind": kind}


def accepted(answers: Sequence[str]) -> tuple[str, ...]:
    """The forms of the accepted answers whose first tokens count: both cases, with and without a space, and
    numbers up to ten in words and digits."""
    forms: list[str] = []
    for answer in answers:
        word = answer.strip()
        words = [word]
        if word.lower() in NUMBERS:
            words.append(str(NUMBERS.index(word.lower())))
        elif word.isdecimal() and int(word) < len(NUMBERS):
            words.append(NUMBERS[int(word)])
        forms += YES if word.lower() == "yes" else [f for w in words for f in (w, w.capitalize())]
    return tuple(dict.fromkeys([*forms, *(f" {form.strip()}" for form in forms)]))


def ask(row: Row, wording: Wording) -> list[Question]:
    """Every question; a few tokens, of which the first word counts."""
    return [wording.ask(8, accepted(q["answers"]), question=q["question"]) for q in row["questions"]]


def score(row: Row, answers: Sequence[Answer], last: bool, official: bool) -> list[Item]:
    """Right answers by their first word, in all and by kind; prompts with all right; and Soft-TIFA."""
    pairs = list(zip(row["questions"], answers, strict=True))
    right = [float(says(answer, question["answers"])) for question, answer in pairs]
    soft = [probability(answer, accepted(question["answers"])) for question, answer in pairs]
    kinds = [
        Item(f"kind/{q['kind']}", value) for (q, _), value in zip(pairs, right, strict=True) if q["kind"]
    ]
    return [
        Item("accuracy", sum(right) / len(right)),
        Item("all right", float(all(right))),
        Item("soft_tifa_am", sum(soft) / len(soft)),
        Item("soft_tifa_gm", geometric_mean(soft)),
        *kinds,
    ]


QUESTIONS = Suite(
    name="questions",
    title="Questions of the user's own",
    source="the user's file",
    license="the user's",
    formula="a question is right if the first word of its answer is that of an accepted one; a picture "
    "scores the share of its right questions; overall the mean over pictures",
    files=FORMAT,
    judge="",
    read=read,
    ask=ask,
    score=score,
    weights=lambda groups: {"accuracy": 1.0},
    wording=Wording("{question} Answer in one word."),
    fields=("question",),
    needs_probabilities=True,
)
