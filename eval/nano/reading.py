"""How well an embedded model reads the small world: questions about fresh scenes, of both families alike."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from random import Random

from PIL import Image

from ...blocks.chat.pipeline import ChatPipeline
from ...nano.world.questions import KINDS, sample_question, sample_scene
from ...nano.world.renderer import to_pil

SIDE = 128
"""Side of the pictures in pixels."""

TITLES = {"train": "combinations seen in training", "held_out": "combinations left out"}

Table = dict[str, tuple[int, int]]
"""(right, asked) by kind."""


def ask_all(
    pipe: ChatPipeline,
    asked: Sequence[tuple[Sequence[Image.Image], str]],
    max_new_tokens: int,
    batch: int = 50,
) -> list[str]:
    """The greedy answers to questions about pictures, each a conversation of its own."""
    messages = [
        [
            {
                "role": "user",
                "content": [
                    *({"type": "image", "image": picture} for picture in pictures),
                    {"type": "text", "text": text},
                ],
            }
        ]
        for pictures, text in asked
    ]
    parts = [messages[start : start + batch] for start in range(0, len(messages), batch)]
    return [answer for part in parts for answer in pipe.chat_batch(part, max_new_tokens=max_new_tokens)]


def tally(kinds: Iterable[str], right: Iterable[bool]) -> Table:
    table: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for kind, good in zip(kinds, right, strict=True):
        table[kind][0] += good
        table[kind][1] += 1
    return {kind: (good, asked) for kind, (good, asked) in table.items()}


def same_answer(said: str, wanted: str) -> bool:
    return said.strip().lower().rstrip(".") == wanted


def score_answers(pipe: ChatPipeline, scenes: int, seed: int, split: str) -> Table:
    """(right, asked) for each kind of question; one question a scene. In the held-out split, only questions
    that are about what was left out count."""
    rng, cases = Random(seed), []
    while len(cases) < scenes:
        scene = sample_scene(rng, split)
        question = sample_question(scene, rng, KINDS[len(cases) % len(KINDS)])
        if question.held_out == (split == "held_out"):
            cases.append((to_pil(scene, SIDE), question))
    answers = ask_all(pipe, [([picture], question.text) for picture, question in cases], 16)
    questions = [question for _, question in cases]
    right = [same_answer(said, one.answer) for said, one in zip(answers, questions, strict=True)]
    return tally((question.kind for question in questions), right)


def table_line(name: str, table: Table) -> str:
    right, asked = (sum(column) for column in zip(*table.values(), strict=True))
    kinds = ", ".join(f"{kind} {r / n:.1%}" for kind, (r, n) in sorted(table.items()))
    return f"{name:<28} {right / asked:7.2%}  ({right} of {asked}: {kinds})"
