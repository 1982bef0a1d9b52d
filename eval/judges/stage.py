"""The stage that asks a judge about the pictures of a run.

R/judge.json       the suite, the judge and the words of the questions
R/answers.sqlite   its answers, each as soon as it is there (or another file, which runs may share)
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ...blocks.checkpoints.hub import find_model_folder
from ...blocks.errors import BifronsError
from ...scale.placement import default_processes, weights_bytes
from ...scale.progress import Advance
from ..atomic_io import read_json, write_json
from ..runs.detect import ImageRecord
from ..runs.ranks import Ranks
from ..runs.workers import run_workers
from ..suites.catalog import suite_named
from ..suites.questions import Answer, Question
from ..suites.suite import Suite, Wording
from .answers import AnswerFile
from .endpoint import Refused
from .judge import Judge, JudgeChoice, answer_key

log = logging.getLogger(__name__)
_JUDGE, _ANSWERS = "judge.json", "answers.sqlite"
_HOPELESS = 10
"""After this many refusals and no answer, the judge is given up."""


class Ask(NamedTuple):
    """A question about a picture, and the key under which its answer is kept."""

    key: str
    picture: Path
    question: Question


@dataclass(frozen=True)
class JudgedRun:
    """What judge.json says: whose answers, to which words, are a run's."""

    suite: Suite
    identity: Mapping[str, Any]
    where: str
    model: str
    wording: Wording
    answers: Path

    @property
    def choice_fields(self) -> dict[str, Any]:
        """The fields of `JudgeChoice` that name this judge again."""
        if self.identity["kind"] != "endpoint":
            own = {name: self.identity.get(name) for name in ("dtype", "quantize")}
            return {"where": self.where, **own}
        options = json.dumps(self.identity["options"])
        return {
            "where": self.where,
            "model": self.model,
            "version": self.identity["version"],
            "options": options,
        }

    def asks(self, record: ImageRecord) -> list[Ask]:
        """The questions about a picture. A judge in process is held to a suite's choices; an endpoint is not,
        since not every one can be."""
        questions = self.suite.ask(record.metadata, self.wording)
        if self.identity["kind"] == "endpoint":
            questions = [replace(question, choices=()) for question in questions]
        return [Ask(answer_key(self.identity, record.sha256, q), record.path, q) for q in questions]


@dataclass(frozen=True)
class JudgeWorker:
    """Asks a judge about pictures, `threads` questions at once, and keeps each answer."""

    choice: JudgeChoice
    answers: Path

    def __call__(self, share: Sequence[list[Ask]], device: str, advance: Advance) -> None:
        if not share:
            return
        judge, answer_file = self.choice.make(device), AnswerFile(self.answers)
        refused: list[str] = []
        answered = 0

        def ask(one: Ask) -> Answer:
            answer = _ask(judge, one)
            answer_file.put(one.key, answer)
            return answer

        try:
            with ThreadPoolExecutor(judge.threads) as pool:
                for answers in _in_order(pool, ask, share, 4 * judge.threads):
                    for answer in answers:
                        answered += not answer.refused
                        refused += [answer.refused] if answer.refused else []
                    if not answered and len(refused) >= min(_HOPELESS, sum(map(len, share))):
                        raise BifronsError(f"the judge refuses every question; the first: {refused[0]}")
                    advance(1)
        finally:
            answer_file.close()
        for reason in refused[:3]:
            log.warning("%s (%d questions refused in all)", reason, len(refused))


def _ask(judge: Judge, one: Ask) -> Answer:
    try:
        return judge.ask(one.picture, one.question)
    except Refused as error:
        return Answer("", {}, str(error))


def _in_order(
    pool: ThreadPoolExecutor, ask: Any, share: Sequence[list[Ask]], ahead: int
) -> Iterator[list[Answer]]:
    """The answers for each picture, with a bounded number of pictures begun; nothing more after a failure."""
    left = iter(share)
    begun = [[pool.submit(ask, one) for one in asks] for asks in islice(left, ahead)]
    try:
        while begun:
            yield [future.result() for future in begun.pop(0)]
            begun += [[pool.submit(ask, one) for one in asks] for asks in islice(left, 1)]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def begin(
    root: Path, suite: Suite, choice: JudgeChoice, wording: Wording | None = None, answers: Path | None = None
) -> JudgedRun:
    """Write judge.json, or check that it says the same. choice: a resolved one.

    Raises BifronsError where the run was judged by another judge or with other words.
    """
    wording = wording or suite.wording
    suite.check_wording(wording)
    path = root / _JUDGE
    content = {
        "suite": suite.name,
        "judge": choice.identity,
        "where": choice.where,
        "model": choice.model,
        "wording": asdict(wording),
        "answers": None if answers is None else os.path.realpath(answers),
    }
    if os.path.isfile(path):
        old = read_json(path)
        for name in ("suite", "judge", "wording"):
            if not isinstance(old, dict) or old.get(name) != content[name]:
                before = old.get(name) if isinstance(old, dict) else None
                raise BifronsError(
                    f"{root} was judged with another {name}: {before!r}, not {content[name]!r}; accepted: "
                    f"the same, or remove {_JUDGE} there to judge anew"
                )
        if answers is None:
            content["answers"] = old.get("answers")
    write_json(path, content)
    return open_judged(root)


def open_judged(root: Path) -> JudgedRun:
    """What judge.json says. Raises BifronsError where it is missing or odd."""
    path = root / _JUDGE
    if not os.path.isfile(path):
        raise BifronsError(f"{root} has no {_JUDGE}; accepted: a run that `bifrons eval judge` judged")
    content = read_json(path)
    try:
        answers = content["answers"]
        return JudgedRun(
            suite_named(content["suite"]),
            dict(content["judge"]),
            str(content["where"]),
            str(content["model"]),
            Wording(**content["wording"]),
            root / _ANSWERS if answers is None else Path(answers),
        )
    except (KeyError, TypeError) as error:
        raise BifronsError(f"{path} is not what `bifrons eval judge` writes: {error!r}; remove it") from error


def judge_pictures(
    judged: JudgedRun,
    images: Sequence[ImageRecord],
    choice: JudgeChoice,
    device: str | None = None,
    processes: int | None = None,
    threads: int = 1,
    ranks: Ranks | None = None,
) -> int:
    """`ask_missing` about the images of a run."""
    asks = [judged.asks(record) for record in images]
    return ask_missing(judged.answers, asks, choice, device, processes, threads, ranks)


def ask_missing(
    answers: Path,
    asks: Sequence[list[Ask]],
    choice: JudgeChoice,
    device: str | None = None,
    processes: int | None = None,
    threads: int = 1,
    ranks: Ranks | None = None,
) -> int:
    """Ask what was not answered yet; returns how many pictures that are, in this rank's share.

    asks: the questions about each picture. Raises BifronsError where the judge or the disk fails; what is
    answered is kept.
    """
    ranks = ranks or Ranks()
    share = ranks.divide(asks, lambda part: _unanswered(answers, part))
    choice.placement.check(device, processes)
    if share:
        processes, device = processes_of(choice, device, processes, ranks)
        worker = JudgeWorker(choice, answers)
        run_workers(worker, share, len(share), processes, ranks.device(device), threads, "judging")
    ranks.wait()
    return len(share)


def processes_of(
    choice: JudgeChoice, device: str | None, processes: int | None, ranks: Ranks | None = None
) -> tuple[int, str | None]:
    """How many processes ask, where none was said, and on which device they run."""
    if choice.is_endpoint:
        return 1, "cpu"
    if processes is not None:
        return processes, device
    if choice.placement.takes_all or (ranks is not None and ranks.size > 1):
        return 1, device
    return default_processes(device, weights_bytes(find_model_folder(choice.model))), device


def _unanswered(path: Path, asks: Sequence[list[Ask]]) -> list[list[Ask]]:
    """Of each picture the questions without an answer; each question about the same picture once."""
    answer_file = AnswerFile(path)
    try:
        answers = answer_file.get([one.key for of_picture in asks for one in of_picture])
        seen = {key for key, answer in answers.items() if not answer.refused}
    finally:
        answer_file.close()
    share = []
    for of_picture in asks:
        left = []
        for one in of_picture:
            if one.key not in seen:
                seen.add(one.key)
                left.append(one)
        if left:
            share.append(left)
    return share
