"""Run a benchmark: its questions to a model, its answers to scores.

R/read.json        the benchmark, its file, the model and the words of the questions
R/pictures/        pictures that the benchmark's file holds, named by their sha256
R/answers.sqlite   answers, each as soon as it is there
R/results.jsonl    an example a line: question, what is right, the answer, its scores
R/summary.json     scores with intervals
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...blocks.errors import BifronsError, OptionError, PictureError
from ...blocks.image_io import open_image
from ..atomic_io import atomic_file, disk_errors, make_folder, write_json, write_recipe
from ..geneval.suites import select_prompts
from ..judges.answers import AnswerFile
from ..judges.judge import JudgeChoice, answer_key
from ..judges.stage import Ask, ask_missing
from ..row_files import Pictures
from ..runs.detect import file_sha256
from ..runs.record import software
from ..suites.questions import Answer, Question
from ..suites.summary import LEVEL, summarize
from .benchmarks import Benchmark, Example, Scored, benchmark_named

SCHEMA = 1


@dataclass(frozen=True)
class Reading:
    """What to run. path: the benchmark's file or folder; images: the folder of its pictures, by default the
    path's; prompt: words with {question}, by default the benchmark's; limit: examples, evenly spread."""

    benchmark: str
    path: Path
    choice: JudgeChoice
    images: Path | None = None
    prompt: str | None = None
    limit: int | None = None


def read_benchmark(
    root: Path, reading: Reading, device: str | None = None, processes: int | None = None, threads: int = 1
) -> dict[str, Any]:
    """Run a benchmark, or go on; returns the content of summary.json. Raises BifronsError."""
    benchmark = benchmark_named(reading.benchmark)
    prompt = reading.prompt or benchmark.prompt
    if prompt.count("{question}") != 1:
        raise OptionError(f"prompt is {prompt!r}; accepted: a text with {{question}} in it once")
    choice = reading.choice.resolved()
    make_folder(root)
    recipe = _begin(root, reading, benchmark, prompt, choice)
    home = reading.path if reading.path.is_dir() else reading.path.parent
    pictures = Pictures(reading.images or home, root / "pictures")
    examples = list(benchmark.read(reading.path, pictures))
    if not examples:
        raise BifronsError(f"{reading.path} holds no examples; accepted: {benchmark.formats}")
    examples = [examples[i] for i in select_prompts(len(examples), reading.limit)]
    asks = _asks(examples, benchmark, prompt, choice)
    ask_missing(root / "answers.sqlite", [[ask] for ask in asks], choice, device, processes, threads)
    return _score(root, benchmark, examples, asks, recipe)


def _begin(
    root: Path, reading: Reading, benchmark: Benchmark, prompt: str, choice: JudgeChoice
) -> dict[str, Any]:
    """Write read.json, or check that it says the same."""
    if not os.path.exists(reading.path):
        raise BifronsError(f"{reading.path} does not exist; accepted: {benchmark.formats}")
    with disk_errors(f"read {reading.path}"):
        digest = None if reading.path.is_dir() else file_sha256(reading.path)
    recipe = {
        "benchmark": benchmark.name,
        "file": reading.path.name,
        "sha256": digest,
        "model": choice.model,
        "model_identity": choice.identity,
        "prompt": prompt,
        "limit": reading.limit,
    }
    # A model's folder may move; its identity tells.
    write_recipe(root / "read.json", recipe, "bifrons eval read", free=("model",))
    return recipe


def _asks(examples: Sequence[Example], benchmark: Benchmark, prompt: str, choice: JudgeChoice) -> list[Ask]:
    hashes: dict[Path, str] = {}
    asks = []
    for example in examples:
        if example.image not in hashes:
            with disk_errors(f"read {example.image}"):
                hashes[example.image] = file_sha256(example.image)
        question = Question(prompt.replace("{question}", example.question), max_tokens=benchmark.max_tokens)
        key = answer_key(choice.identity, hashes[example.image], question)
        asks.append(Ask(key, example.image, question))
    return asks


def _score(
    root: Path,
    benchmark: Benchmark,
    examples: Sequence[Example],
    asks: Sequence[Ask],
    recipe: dict[str, Any],
) -> dict[str, Any]:
    """Write results.jsonl and summary.json, whose content is returned."""
    answer_file = AnswerFile(root / "answers.sqlite")
    try:
        answers = answer_file.get([ask.key for ask in asks])
    finally:
        answer_file.close()
    scored: list[Scored] = []
    problems: list[dict[str, Any]] = []
    with atomic_file(root / "results.jsonl") as stream:
        for number, (example, ask) in enumerate(zip(examples, asks, strict=True)):
            text = answers[ask.key].text
            items, problem = _items(benchmark, example, answers[ask.key])
            if problem:
                problems.append({"example": number, "reason": problem})
            else:
                cluster = example.cluster or str(number)
                scored.append(Scored(example.group, cluster, example.answers, text, tuple(items)))
            right = list(example.answers if example.box is None else example.box)
            row = {"example": number, "question": ask.question.text, "right": right, "answer": text}
            stream.write((json.dumps({**row, "items": items}, ensure_ascii=False) + "\n").encode())
        if not scored:
            raise BifronsError(f"{root}: no example could be scored: {problems[0]['reason']}")
    content = {**_scores(benchmark, scored), "recipe": recipe, "software": software(), "not_scored": problems}
    write_json(root / "summary.json", content)
    return content


def _scores(benchmark: Benchmark, scored: Sequence[Scored]) -> dict[str, Any]:
    """The scores of all examples, as plain JSON values."""
    by_cluster: dict[str, list[tuple[Any, ...]]] = {}
    for one in scored:
        by_cluster.setdefault(one.cluster, []).append(one.items)
    main = scored[0].items[0].group
    summary = summarize(lambda groups: {main: 1.0}, by_cluster)
    return {
        "schema_version": SCHEMA,
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "formula": benchmark.formula,
        "overall": summary.overall,
        "overall_interval": None if summary.interval is None else list(summary.interval),
        "interval_level": LEVEL,
        "groups": {
            name: {"score": group.score, "interval": list(group.interval), "items": group.items}
            for name, group in summary.groups.items()
        },
        "metrics": benchmark.metrics(scored),
        "examples": len(scored),
    }


def _items(benchmark: Benchmark, example: Example, answer: Answer) -> tuple[list[Any], str]:
    """An answer's items, or why there are none."""
    if answer.refused:
        return [], answer.refused
    try:
        size = open_image(example.image).size if example.box else (0, 0)
    except PictureError as error:
        return [], str(error)
    return benchmark.score(example, answer.text, size), ""
