"""Run problems with one right answer: questions to a model, answers to pass@1.

R/math.json        the file, the model, the words of the questions and how answers are drawn
R/pictures/        pictures that the file holds, named by their sha256
R/answers.sqlite   answers, each as soon as it is there
R/results.jsonl    a problem a line: its right answer, the answers, which of them are right
R/summary.json     scores with intervals
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ...blocks.errors import BifronsError, OptionError, check_integer, check_number
from ...scale.progress import Advance
from ..atomic_io import atomic_file, disk_errors, make_folder, write_json, write_recipe
from ..geneval.suites import select_prompts
from ..judges.answers import AnswerFile
from ..judges.endpoint import Refused
from ..judges.judge import Judge, JudgeChoice
from ..judges.stage import processes_of
from ..runs.detect import file_sha256
from ..runs.record import software
from ..runs.workers import run_workers
from ..suites.questions import Answer, Draw
from ..suites.suite import Item
from ..suites.summary import LEVEL, summarize
from .problems import FORMATS, PROMPT, Problem, read_problems
from .values import is_right

SCHEMA = 1
_FILE, _ANSWERS = "math.json", "answers.sqlite"


@dataclass(frozen=True)
class MathOptions:
    """How problems are asked and answered.

    `samples` answers of each problem, sample k with seed `seed + k`; `limit` problems, evenly spread over the
    file; `batch_size` are answered together. Raises `OptionError`.
    """

    prompt: str = PROMPT
    samples: int = 1
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    limit: int | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.prompt.count("{question}") != 1:
            raise OptionError(f"prompt is {self.prompt!r}; accepted: a text with {{question}} in it once")
        check_integer("samples", self.samples, 1, 1024)
        check_integer("max_new_tokens", self.max_new_tokens, low=1)
        check_integer("seed", self.seed, 0, 2**31 - 1)
        check_integer("batch_size", self.batch_size, 1, 4096)
        if self.limit is not None:
            check_integer("limit", self.limit, low=1)
        check_number("temperature", self.temperature, 0.0, 10.0)
        if not check_number("top_p", self.top_p, 0.0, 1.0) > 0:
            raise OptionError("top_p is 0; accepted: above 0, up to 1, which is all tokens")
        if self.samples > 1 and self.temperature == 0:
            raise OptionError(
                f"samples is {self.samples} at temperature 0, where all are the same; accepted: a "
                "temperature above 0, such as 0.6, or one sample"
            )

    @property
    def draws(self) -> list[Draw]:
        """How each sample is drawn."""
        first = Draw(self.max_new_tokens, self.temperature, self.top_p, self.seed)
        return [replace(first, seed=self.seed + number) for number in range(self.samples)]


class _Ask(NamedTuple):
    """An answer to be drawn, and the key under which it is kept."""

    key: str
    messages: list[dict[str, Any]]
    draw: Draw


@dataclass(frozen=True)
class MathWorker:
    """Draws answers, those of a list together, and keeps each; as many lists at once as the model takes."""

    choice: JudgeChoice
    answers: Path

    def __call__(self, share: Sequence[list[_Ask]], device: str, advance: Advance) -> None:
        if not share:
            return
        judge, answer_file = self.choice.make(device), AnswerFile(self.answers)

        def work(asks: list[_Ask]) -> None:
            for ask, answer in zip(asks, _drawn(judge, asks), strict=True):
                answer_file.put(ask.key, answer)
            advance(len(asks))

        try:
            with ThreadPoolExecutor(judge.threads) as pool:
                futures = [pool.submit(work, asks) for asks in share]
                try:
                    for future in futures:
                        future.result()
                finally:
                    pool.shutdown(wait=False, cancel_futures=True)
        finally:
            answer_file.close()


def _drawn(judge: Judge, asks: Sequence[_Ask]) -> list[Answer]:
    """The answers to questions that are drawn alike; where one can't be answered, each is asked alone."""
    try:
        return [Answer(text) for text in judge.chat([ask.messages for ask in asks], asks[0].draw)]
    except Refused as error:
        if len(asks) == 1:
            return [Answer("", {}, str(error))]
        return [answer for ask in asks for answer in _drawn(judge, [ask])]


def evaluate_math(
    root: Path,
    path: Path,
    choice: JudgeChoice,
    options: MathOptions,
    images: Path | None = None,
    device: str | None = None,
    processes: int | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Run the problems of a file, or go on; returns the content of summary.json. Raises BifronsError."""
    choice = choice.resolved()
    make_folder(root)
    recipe = _begin(root, path, choice, options)
    problems = list(read_problems(path, options.prompt, root / "pictures", images))
    if not problems:
        raise BifronsError(f"{path} holds no problems; accepted: {FORMATS}")
    problems = [problems[index] for index in select_prompts(len(problems), options.limit)]
    asks = [[_ask(choice, problem, draw) for problem in problems] for draw in options.draws]
    _ask_missing(root / _ANSWERS, asks, choice, options.batch_size, device, processes, threads)
    return _score(root, problems, asks, recipe)


def _begin(root: Path, path: Path, choice: JudgeChoice, options: MathOptions) -> dict[str, Any]:
    """Write math.json, or check that it says the same."""
    if not os.path.exists(path):
        raise BifronsError(f"{path} does not exist; accepted: {FORMATS}")
    with disk_errors(f"read {path}"):
        digest = None if path.is_dir() else file_sha256(path)
    drawn = {name: value for name, value in asdict(options).items() if name != "batch_size"}
    recipe = {
        "file": path.name,
        "sha256": digest,
        "model": choice.model,
        "model_identity": choice.identity,
        **drawn,
    }
    # A folder may move; answers are kept by what they are drawn from.
    write_recipe(root / _FILE, recipe, "bifrons eval math", free=("model", "samples", "limit"))
    return recipe


def _ask(choice: JudgeChoice, problem: Problem, draw: Draw) -> _Ask:
    seed = None if draw.temperature == 0 else draw.seed
    content = {"model": choice.identity, "problem": problem.digest, "draw": {**asdict(draw), "seed": seed}}
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return _Ask(key, problem.messages, draw)


def _ask_missing(
    answers: Path,
    asks: Sequence[Sequence[_Ask]],
    choice: JudgeChoice,
    batch_size: int,
    device: str | None,
    processes: int | None,
    threads: int,
) -> None:
    """Ask what was not answered yet. asks: by sample."""
    answer_file = AnswerFile(answers)
    try:
        found = answer_file.get([ask.key for of_sample in asks for ask in of_sample])
    finally:
        answer_file.close()
    seen = {key for key, answer in found.items() if not answer.refused}
    share: list[list[_Ask]] = []
    size = 1 if choice.is_endpoint else batch_size
    for of_sample in asks:
        left = list({ask.key: ask for ask in of_sample if ask.key not in seen}.values())
        share += [left[start : start + size] for start in range(0, len(left), size)]
    choice.placement.check(device, processes)
    if not share:
        return
    processes, device = processes_of(choice, device, processes)
    worker, count = MathWorker(choice, answers), sum(map(len, share))
    run_workers(worker, share, count, processes, device, threads, "answering", unit="answer")


def _score(
    root: Path, problems: Sequence[Problem], asks: Sequence[Sequence[_Ask]], recipe: dict[str, Any]
) -> dict[str, Any]:
    """Write results.jsonl and summary.json, whose content is returned."""
    answer_file = AnswerFile(root / _ANSWERS)
    try:
        answers = answer_file.get([ask.key for of_sample in asks for ask in of_sample])
    finally:
        answer_file.close()
    items: dict[int, list[list[Item]]] = {}
    refused: list[dict[str, Any]] = []
    with atomic_file(root / "results.jsonl") as stream:
        for number, problem in enumerate(problems):
            drawn = [answers[of_sample[number].key] for of_sample in asks]
            right = [is_right(one.text, problem.expected) for one in drawn]
            if reason := next((one.refused for one in drawn if one.refused), ""):
                refused.append({"problem": number, "reason": reason})
            else:
                names = ["pass@1", *([problem.group] if problem.group else [])]
                items[number] = [[Item(name, float(value)) for name in names] for value in right]
            row = {"problem": number, "expected": problem.expected, "right": right}
            row["answers"] = [one.text for one in drawn]
            stream.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    if not items:
        raise BifronsError(f"{root}: no problem could be answered: {refused[0]['reason']}")
    content = {**_scores(items, len(asks)), "recipe": recipe, "software": software(), "not_scored": refused}
    write_json(root / "summary.json", content)
    return content


def _scores(items: dict[int, list[list[Item]]], samples: int) -> dict[str, Any]:
    """The scores of all problems, as plain JSON values: a problem's samples are drawn together."""
    summary = summarize(lambda groups: {"pass@1": 1.0}, items)
    solved = [any(sample[0].value for sample in of_problem) for of_problem in items.values()]
    return {
        "schema_version": SCHEMA,
        "overall": summary.overall,
        "overall_interval": None if summary.interval is None else list(summary.interval),
        "interval_level": LEVEL,
        "groups": {
            name: {"score": group.score, "interval": list(group.interval), "items": group.items}
            for name, group in summary.groups.items()
        },
        "metrics": {} if samples == 1 else {f"pass@{samples}": sum(solved) / len(solved)},
        "problems": len(items),
        "samples": samples,
    }
