"""Recipe: the text tokenizer and the training conversations of `vl2-nano`, made on the CPU.

`python -m bifrons.nano.recipes.vl2_data --help`. Conversations about one picture (questions, places,
descriptions) and about two (comparisons, things like a framed one).
"""

import argparse
import os
from functools import partial
from pathlib import Path
from random import Random

import numpy as np

from ...vl2.grounding import FULL
from ...vl2.prompts import GROUNDING, locate_prompt
from ..world.pairs import KINDS as PAIR_KINDS
from ..world.pairs import sample_comparison, sample_example_query, sample_pair
from ..world.phrases import answer, grounded_caption, normalized_box, sample_query
from ..world.questions import sample_question
from ..world.scene import Scene, sample_scene
from ..world.sentences import KINDS, sample_case
from .datasets import CAPTION_REQUESTS, SHARD, Arrays, build, caption, collate, save_examples
from .janus_data import EXAMPLES
from .vl2_spec import ConversationEncoder, write_folder

ONE_WIDTH, TWO_WIDTH = 288, 352
"""Tokens of the longest conversation about one picture, and about two."""
MAX_TURNS = 6

Turns = list[tuple[str, str]]


def single_image_conversation(scene: Scene, rng: Random) -> Turns:
    """A conversation about one picture."""
    turns: Turns = []
    for _ in range(rng.randint(2, MAX_TURNS)):
        draw = rng.random()
        if draw < 0.52:
            question = sample_question(scene, rng)
            turns.append((question.text, question.answer))
        elif draw < 0.92:
            query = sample_query(scene, rng)
            turns.append((locate_prompt(query.phrase), answer(query)))
        elif draw < 0.96:
            turns.append((rng.choice(CAPTION_REQUESTS), caption(scene)))
        else:
            turns.append((GROUNDING + rng.choice(CAPTION_REQUESTS), grounded_caption(scene)))
    return turns


def two_image_conversation(a: Scene, b: Scene, rng: Random) -> Turns:
    """A conversation about two pictures. Whether a colour is the same is hardest, and asked most."""
    shares = [3 if kind == "same" else 1 for kind in PAIR_KINDS]
    kinds = rng.choices(PAIR_KINDS, shares, k=rng.randint(2, MAX_TURNS))
    questions = [sample_comparison(a, b, rng, kind) for kind in kinds]
    return [(question.text, question.answer) for question in questions]


def _fitting(
    encode: ConversationEncoder, turns: Turns, pictures: int, width: int
) -> tuple[list[int], list[bool]]:
    ids, learn = encode(turns, pictures)
    while len(ids) > width:
        turns = turns[:-1]
        ids, learn = encode(turns, pictures)
    return ids, learn


def one_shard(seed: int, encode: ConversationEncoder) -> Arrays:
    """Conversations about one picture; half of the scenes are those of sentences."""
    rng = Random(seed)
    rows, learn, scenes = [], [], []
    for index in range(SHARD):
        scene = sample_scene(rng) if index % 2 else sample_case(rng.choice((*KINDS, "mixed")), rng).scene
        ids, marks = _fitting(encode, single_image_conversation(scene, rng), 1, ONE_WIDTH)
        rows.append(ids)
        learn.append(marks)
        scenes.append(scene)
    return collate(rows, learn, scenes, ONE_WIDTH)


def two_shard(seed: int, encode: ConversationEncoder) -> Arrays:
    """Conversations about two pictures: rows as for one, the second scenes under names with `second.`, and
    `frame` float16 `[N, 4]`, the box in 0..1 that is framed in the first picture (zeros: none)."""
    rng = Random(seed)
    rows, learn, firsts, seconds, frames = [], [], [], [], []
    for _ in range(SHARD):
        a, b = sample_pair(rng)
        frame = (0, 0, 0, 0)
        if rng.random() < 0.2:
            obj, question, query = sample_example_query(a, b, rng)
            frame, turns = normalized_box(obj), [(question, answer(query))]
        else:
            turns = two_image_conversation(a, b, rng)
        ids, marks = _fitting(encode, turns, 2, TWO_WIDTH)
        rows.append(ids)
        learn.append(marks)
        firsts.append(a)
        seconds.append(b)
        frames.append(frame)
    first, second = (collate(rows, learn, scenes, TWO_WIDTH) for scenes in (firsts, seconds))
    extra = {f"second.{k}": second[k] for k in ("shape", "place", "color", "background")}
    return {**first, **extra, "frame": (np.array(frames) / FULL).astype(np.float16)}


def make_examples(folder: Path, one: int, two: int, seed: int, workers: int) -> None:
    """Write the folder's JSON files and `examples.npz`."""
    write_folder(folder)
    encode = ConversationEncoder(folder)
    save_examples(
        folder / EXAMPLES,
        one=build(partial(one_shard, encode=encode), max(1, one // SHARD), seed, workers),
        two=build(partial(two_shard, encode=encode), max(1, two // SHARD), seed + 5000, workers),
    )


def main() -> None:
    """Make vl2-nano's tokenizer and examples."""
    parser = argparse.ArgumentParser(description="Make vl2-nano's text tokenizer and training examples.")
    parser.add_argument("--folder", type=Path, default=Path("runs/vl2-nano"))
    parser.add_argument("--one", type=int, default=200_000, help="conversations about one picture")
    parser.add_argument("--two", type=int, default=100_000, help="conversations about two pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    make_examples(args.folder, args.one, args.two, args.seed, args.workers)


if __name__ == "__main__":
    main()
