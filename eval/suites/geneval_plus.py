"""GenEval++ (Ye et al. 2025, arXiv 2508.09987): 280 harder prompts in GenEval's schema, each picture judged
against a checklist, 0 or 1."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...blocks.errors import BifronsError
from ...blocks.json_config import decode_json
from ..geneval.suites import Row
from .questions import Answer, Question
from .suite import Item, Suite, Wording, read_lines_of_json, text_of

_OBJECT = re.compile(r"\{.*\}", re.DOTALL)
CHOICES = ('{"correct": 0}', '{"correct": 1}')
_DETAILS = ("color", "size", "region")


def read(path: Path) -> list[Row]:
    """The rows of Geneval++.jsonl: {tag, include: [{class, count, color, region, size}], exclude, prompt}."""
    rows = []
    for where, row in read_lines_of_json(path):
        text_of(row, "prompt", where)
        text_of(row, "tag", where)
        if not isinstance(row.get("include"), list) or not row["include"]:
            raise BifronsError(f"{where}: 'include' is no list of objects")
        for name in ("include", "exclude"):
            for item in row.get(name, ()):
                _check(item, f"{where}: {name}")
        rows.append(row)
    return rows


def _check(item: Any, where: str) -> None:
    text_of(item, "class", where)
    count = item.get("count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise BifronsError(f"{where}: 'count' is {count!r}; accepted: a whole number from 1")
    for name in _DETAILS:
        if item.get(name) is not None:
            text_of(item, name, where)


def checklist(row: Row) -> str:
    """The row's requirements, one a line, as the official script writes them."""
    lines = [f"- {_required(item)}." for item in row["include"]]
    for item in row.get("exclude", ()):
        limit = item.get("count", 1)
        lines.append(f"- No more than {limit - 1} {_plural(item['class'], limit)} should appear.")
    return "\n".join(lines)


def _required(item: Mapping[str, Any]) -> str:
    count = item.get("count", 1)
    words = [f"{item['color']}-colored"] if item.get("color") else []
    words += [item["size"]] if item.get("size") else []
    words += [str(count), _plural(item["class"], count)]
    region = item.get("region")
    place = f"located in the {region} part of the image" if region else "present in the image"
    return " ".join([*words, place])


def _plural(name: str, count: int) -> str:
    return f"{name}s" if count > 1 else name


def ask(row: Row, wording: Wording) -> list[Question]:
    """One question with the whole checklist."""
    return [wording.ask(200, choices=CHOICES, prompt=row["prompt"].strip(), checklist=checklist(row))]


def score(row: Row, answers: Sequence[Answer], last: bool, official: bool) -> list[Item]:
    """The `correct` of the JSON object in the answer; as officially, an answer without one counts 0."""
    found = _OBJECT.search(answers[0].text)
    try:
        verdict = decode_json(found[0].encode()) if found else None
    except ValueError:
        verdict = None
    value = float(isinstance(verdict, dict) and verdict.get("correct") in (1, True))
    return [Item(row["tag"], value), Item("all pictures", value)]


def weights(groups: Sequence[str]) -> dict[str, float]:
    """The overall score is the mean of the tags' accuracies."""
    tags = [group for group in groups if group != "all pictures"]
    return {tag: 1 / len(tags) for tag in tags}


GENEVAL_PLUS = Suite(
    name="geneval++",
    title="GenEval++",
    source="https://github.com/yejy53/Echo-4o (28f36d7, test_scripts), arXiv 2508.09987",
    license="Apache 2.0",
    formula="a picture that meets its whole checklist is right; overall the mean of the accuracies of the "
    "seven tags",
    files="Geneval++.jsonl",
    judge="gpt-4.1",
    read=read,
    ask=ask,
    score=score,
    weights=weights,
    wording=Wording(
        "The picture was made for this prompt: {prompt}\nIt must show:\n{checklist}\n"
        "Does it meet every line, with these numbers, colours, places and sizes, as one natural photo? "
        'Answer with a JSON object: {"correct": 1 or 0, "reason": "..."}',
        system="You check pictures strictly against a list of requirements.",
    ),
    official_wording="c391433df0f5e54900bdf699202ebe2acb0764c285626270d70ddc297e684d52",
    script_fields={
        "instruction": "{prompt}",
        "explanation": "This image should contain:\n{checklist}",
    },
    fields=("prompt", "checklist"),
    prompts=280,
    prompts_sha256="9c1216a3f6fe2d99e4ffd63f3a6dba71f3dd7ab30a7c09cb41f03629b35d3e8f",
    file_sha256={"Geneval++.jsonl": "9c1216a3f6fe2d99e4ffd63f3a6dba71f3dd7ab30a7c09cb41f03629b35d3e8f"},
)
