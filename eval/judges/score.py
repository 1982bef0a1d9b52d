"""From a judge's answers to a run's results.jsonl and summary.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ...blocks.errors import BifronsError, counted
from ..atomic_io import atomic_file, write_json
from ..runs.detect import ImageRecord, images_of_run
from ..runs.run_dir import RunDir, software
from ..suites.questions import Answer, UnclearAnswer
from ..suites.suite import Item
from ..suites.summary import LEVEL, SuiteSummary, summarize
from .answers import AnswerFile
from .stage import JudgedRun, open_judged

SCHEMA = 1
_FORMS = ("response_format", "structured_outputs")
"""Fields of requests that hold answers to a form, beside vLLM's older guided_*."""


def score_run(run: RunDir, official: bool = False) -> dict[str, Any]:
    """Score a judged run: results.jsonl (a picture a line, with its answers) and summary.json, whose
    content is returned.

    official: DPG-Bench's switch. Raises BifronsError where answers are missing or no picture can be scored.
    """
    judged = open_judged(run.root)
    if official and not judged.suite.has_official_switch:
        raise BifronsError(f"the suite {judged.suite.name} has no official switch; accepted: dpg")
    images = images_of_run(run)
    answers = _answers(judged, images)
    items: dict[int, list[list[Item]]] = {}
    problems: list[dict[str, str]] = []
    untold = 0
    with atomic_file(run.root / "results.jsonl") as stream:
        for position, record in enumerate(images):
            asks = judged.asks(record)
            given = [answers[one.key] for one in asks]
            prompt = _prompt(record)
            last = position + 1 == len(images) or _prompt(images[position + 1]) != prompt
            try:
                found = _score(judged, record, given, last, official)
            except UnclearAnswer as error:
                problems.append({"filename": record.filename, "reason": str(error)})
                found = None
            else:
                items.setdefault(prompt, []).append(found)
                untold += sum(
                    _is_untold(ask.question.accepted, a) for ask, a in zip(asks, given, strict=True)
                )
            row = {
                "filename": record.filename,
                "prompt": record.metadata["prompt"],
                "items": found,
                "answers": [
                    {"question": ask.question.text, "text": answer.text, "first": dict(answer.first)}
                    for ask, answer in zip(asks, given, strict=True)
                ],
            }
            stream.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        if not items:
            reasons = f" ({problems[0]['filename']}: {problems[0]['reason']})" if problems else ""
            raise BifronsError(f"{run.root}: no picture could be scored{reasons}")
    summary = summarize(judged.suite.weights, items)
    content = _summary_json(run, judged, images, summary, problems, untold, official)
    write_json(run.root / "summary.json", content)
    return content


def _prompt(record: ImageRecord) -> int:
    return int(record.filename.split("/")[0])


def _score(
    judged: JudgedRun, record: ImageRecord, answers: Sequence[Answer], last: bool, official: bool
) -> list[Item]:
    refused = next((answer.refused for answer in answers if answer.refused), None)
    if refused:
        raise UnclearAnswer(refused)
    return judged.suite.score(record.metadata, answers, last, official)


def _is_untold(accepted: Sequence[str], answer: Answer) -> bool:
    """Whether none of the accepted answers is among the tokens that the judge tells."""
    return bool(accepted) and not any(t and text.startswith(t) for text in accepted for t in answer.first)


def _answers(judged: JudgedRun, images: Sequence[ImageRecord]) -> dict[str, Answer]:
    """The answer to every question. Raises BifronsError where one is missing."""
    keys = {one.key: record.filename for record in images for one in judged.asks(record)}
    answer_file = AnswerFile(judged.answers)
    try:
        answers = answer_file.get(list(keys))
    finally:
        answer_file.close()
    missing = keys.keys() - answers.keys()
    if missing:
        raise BifronsError(
            f"{judged.answers} lacks {len(missing)} of {len(keys)} answers, such as one about "
            f"{min(keys[key] for key in missing)}; `bifrons eval judge` goes on"
        )
    return answers


def _summary_json(
    run: RunDir,
    judged: JudgedRun,
    images: Sequence[ImageRecord],
    summary: SuiteSummary,
    problems: list[dict[str, str]],
    untold: int,
    official: bool,
) -> dict[str, Any]:
    suite = judged.suite
    held_to = _held_to(judged, images)
    obstacles = _obstacles(run, judged, problems, untold, official)
    if held_to:
        obstacles.append(f"the judge's answers are held to a form: {', '.join(held_to)}")
    return {
        "schema_version": SCHEMA,
        "suite": suite.name,
        "title": suite.title,
        "overall": summary.overall,
        "overall_interval": None if summary.interval is None else list(summary.interval),
        "interval_level": LEVEL,
        "missing_groups": list(summary.missing),
        "groups": {
            name: {
                "score": group.score,
                "interval": list(group.interval),
                "items": group.items,
                "prompts": group.prompts,
            }
            for name, group in summary.groups.items()
        },
        "images": summary.pictures,
        "prompts": summary.prompts,
        "comparable": not obstacles,
        "obstacles": obstacles,
        "official_switch": official,
        "formula": suite.formula,
        "source": suite.source,
        "license": suite.license,
        "judge": {**judged.identity, "model": judged.model, "where": judged.where, "held_to": held_to},
        "wording": asdict(judged.wording),
        "recipe": run.recipe.to_json(),
        "fingerprint": run.fingerprint,
        "model_fingerprint": run.model_fingerprint,
        "published": [figures._asdict() for figures in suite.published],
        "software": software(),
        "not_scored": problems,
    }


def _held_to(judged: JudgedRun, images: Sequence[ImageRecord]) -> list[str]:
    """All that the judge may answer, or the fields of its requests that say so; empty if it is free."""
    if judged.identity["kind"] == "endpoint":
        return [name for name in judged.identity["options"] if name in _FORMS or name.startswith("guided_")]
    return list(dict.fromkeys(choice for one in judged.asks(images[0]) for choice in one.question.choices))


def _obstacles(
    run: RunDir, judged: JudgedRun, problems: Sequence[Mapping[str, str]], untold: int, official: bool
) -> list[str]:
    """Why the score may not be compared with published ones of this suite."""
    suite, recipe = judged.suite, run.recipe
    name = judged.model.rstrip("/").rsplit("/", 1)[-1]
    found = []
    if not suite.judge:
        found.append("the questions are the user's own")
    elif name.lower() != suite.judge.lower():
        found.append(f"the judge is {name}, the official one {suite.judge}")
    if suite.judge and judged.wording.sha256 != suite.official_wording:
        found.append("the judge is not asked in the official words")
    if suite.is_official is not None:
        official_rows = suite.is_official(run.rows)
    else:
        official_rows = recipe.prompts_sha256 == suite.prompts_sha256
    if suite.judge and not official_rows:
        known = suite.prompts_sha256 is not None or suite.is_official is not None
        found.append(
            "the prompts are not the official ones"
            if known
            else "the prompts are not checked: no hash of the official file is known"
        )
    if recipe.limit is not None:
        found.append(f"only {counted(recipe.limit, 'prompt')}")
    if suite.judge and recipe.images_per_prompt != suite.images_per_prompt:
        pictures = counted(recipe.images_per_prompt, "picture")
        found.append(f"{pictures} per prompt, officially {suite.images_per_prompt}")
    if suite.has_official_switch and not official:
        found.append("without the official script's faults (--official)")
    if untold:
        found.append(
            f"{counted(untold, 'answer')} counted as 0: none of the accepted is among the tokens that the "
            "judge tells"
        )
    if problems:
        found.append(f"the score lacks {counted(len(problems), 'picture')}")
    return found
