"""GenEval 2 (Kamath et al. 2025, arXiv 2512.16853): 800 prompts, 6,012 questions, scored by Soft-TIFA."""

from collections.abc import Sequence
from pathlib import Path

from ...blocks.errors import BifronsError
from ..geneval.suites import Row
from .questions import NUMBERS, YES, Answer, Question, geometric_mean, probability
from .suite import Item, Suite, Wording, read_lines_of_json, text_of

SKILLS = ("object", "attribute", "count", "position", "verb")
_COUNT = "How many"


def read(path: Path) -> list[Row]:
    """The rows of geneval2_data.jsonl: {prompt, atom_count, vqa_list: [[question, answer]], skills}."""
    rows = []
    for where, row in read_lines_of_json(path):
        text_of(row, "prompt", where)
        pairs, skills, atoms = row.get("vqa_list"), row.get("skills"), row.get("atom_count")
        good = (
            isinstance(pairs, list)
            and pairs
            and all(
                isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) and x for x in pair)
                for pair in pairs
            )
        )
        if not good:
            raise BifronsError(f"{where}: 'vqa_list' is no list of [question, answer]")
        if not isinstance(skills, list) or len(skills) != len(pairs) or not {*skills} <= {*SKILLS}:
            raise BifronsError(f"{where}: 'skills' must name one of {', '.join(SKILLS)} for each question")
        if not isinstance(atoms, int) or isinstance(atoms, bool):
            raise BifronsError(f"{where}: 'atom_count' is {atoms!r}; accepted: a whole number")
        rows.append(row)
    return rows


def accepted(question: str, answer: str) -> tuple[str, ...]:
    """The texts whose first tokens count: a number in words and digits for "How many", else yes."""
    if not question.startswith(_COUNT):
        return YES
    digits = str(NUMBERS.index(answer)) if answer in NUMBERS[1:] else "other"
    forms = (answer, answer.capitalize(), digits)
    return (*forms, *(f" {form}" for form in forms))


def ask(row: Row, wording: Wording) -> list[Question]:
    """A question for each atom, answered with one token."""
    return [wording.ask(1, accepted(q, a), question=q) for q, a in row["vqa_list"]]


def score(row: Row, answers: Sequence[Answer], last: bool, official: bool) -> list[Item]:
    """Soft-TIFA: the arithmetic mean per skill over atoms, the geometric mean per prompt."""
    values = [
        probability(answer, accepted(*pair)) for pair, answer in zip(row["vqa_list"], answers, strict=True)
    ]
    prompt = geometric_mean(values)
    return [
        Item("soft_tifa_gm", prompt),
        Item("soft_tifa_am", sum(values) / len(values)),
        *(Item(f"skill/{skill}", value) for skill, value in zip(row["skills"], values, strict=True)),
        Item(f"atoms/{row['atom_count']:02d}", prompt),
    ]


GENEVAL2 = Suite(
    name="geneval2",
    title="GenEval 2",
    source="https://github.com/facebookresearch/GenEval2 (a6e82d2), arXiv 2512.16853",
    license="CC BY-NC 4.0",
    formula="Soft-TIFA: an atom scores the probability, summed over the first tokens of the accepted "
    "answers, of one greedy token; overall the mean over prompts of the geometric mean of a prompt's "
    "atoms (GM), a skill the mean of its atoms (AM)",
    files="geneval2_data.jsonl",
    judge="Qwen3-VL-8B-Instruct",
    read=read,
    ask=ask,
    score=score,
    weights=lambda groups: {"soft_tifa_gm": 1.0},
    wording=Wording("{question} Answer in one word."),
    official_wording=Wording("{question} Answer in one word.").sha256,
    fields=("question",),
    prompts=800,
    prompts_sha256="09233adbc9f877fba205f1a20efa4a8640e7e62a91dfd55893562bed8a928e43",
    file_sha256={"geneval2_data.jsonl": "09233adbc9f877fba205f1a20efa4a8640e7e62a91dfd55893562bed8a928e43"},
    needs_probabilities=True,
)
