"""Questions about two counts in a picture, which `janus-nano` answers badly, to teach it by rewards.

`python -m bifrons.nano.recipes.counting FOLDER` writes a few answers that think first, to begin with
(`bifrons train sft`), questions whose answers alone are known, to train on by rewards (`bifrons train grpo`),
and others to measure with (`bifrons eval math`).
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ..world.catalog import things
from ..world.names import PAIRED, plural
from ..world.painting import Picture, paint
from ..world.requests import Group, Request
from ..world.wording import NUMBER_WORDS

FILES = {"thoughts": "thoughts.jsonl", "questions": "questions.jsonl", "test": "test.jsonl"}
MOST = 3
"""Things of a class."""
FORM = r"\w+ \w+: \w+"
"""Of answers, both counts and what they come to, such as `three one: two`: for the reward `format:`."""


@dataclass(frozen=True)
class CountingCase:
    """A question about a picture, the thought that leads to its answer, and the answer, a number's word."""

    picture: Picture
    question: str
    thought: str
    answer: str

    @property
    def reply(self) -> str:
        """The thought and the answer, as `FORM` says."""
        return f"{self.thought}: {self.answer}"


def counting_case(rng: Random) -> CountingCase:
    """A random question about the sum of two counts in a random picture, or about their difference."""
    counts = [0, 0]
    while sum(counts) == 0:
        counts = sorted((rng.randint(0, MOST), rng.randint(0, MOST)), reverse=True)
    first, second = rng.sample([name for name in things() if name not in PAIRED], 2)
    a, b = counts
    groups = tuple(Group(name, count) for name, count in zip((first, second), counts, strict=True) if count)
    picture = paint(Request(groups), rng, split="train")
    if rng.random() < 0.5:
        question = f"How many more {plural(first)} than {plural(second)} are there?"
        return CountingCase(picture, question, f"{NUMBER_WORDS[a]} {NUMBER_WORDS[b]}", NUMBER_WORDS[a - b])
    (one, x), (other, y) = rng.sample([(first, a), (second, b)], 2)
    question = f"How many {plural(one)} and {plural(other)} are there together?"
    return CountingCase(picture, question, f"{NUMBER_WORDS[x]} {NUMBER_WORDS[y]}", NUMBER_WORDS[a + b])


def counting_cases(count: int, seed: int) -> Iterator[CountingCase]:
    """Random cases, the same for the same seed."""
    rng = Random(seed)
    for _ in range(count):
        yield counting_case(rng)


def write_questions(folder: Path, thoughts: int, questions: int, test: int, seed: int) -> None:
    """Write the files of `FILES` and their pictures."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number, (name, count) in enumerate(zip(FILES, (thoughts, questions, test), strict=True)):
        rows = []
        for index, case in enumerate(counting_cases(count, 3 * seed + number)):
            picture = f"pictures/{name}-{index:04d}.png"
            case.picture.image().save(folder / picture)
            rows.append(_row(case, picture, with_thought=name == "thoughts"))
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / FILES[name]).write_text(lines, encoding="utf-8")


def _row(case: CountingCase, picture: str, with_thought: bool) -> dict[str, Any]:
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": case.question}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    if with_thought:
        return {"messages": [*messages, {"role": "assistant", "content": case.reply}]}
    return {"messages": messages, "answer": case.answer}


def main() -> None:
    """Command line: write the questions."""
    parser = argparse.ArgumentParser(description="Write questions about two counts in a picture.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--thoughts", type=int, default=200, metavar="N", help="answers that think first")
    parser.add_argument("--questions", type=int, default=1000, metavar="N", help="to train on by rewards")
    parser.add_argument("--test", type=int, default=300, metavar="N", help="to measure with")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write_questions(args.folder, args.thoughts, args.questions, args.test, args.seed)


if __name__ == "__main__":
    main()
