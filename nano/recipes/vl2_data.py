"""The text tokenizer and the training conversations of `vl2-nano`, generated on the CPU.

Usage: `python -m bifrons.nano.recipes.vl2_data --help`. There are conversations about one image (questions,
grounding, captions) and about two (comparisons, in-context grounding).
"""

import argparse
import os
from functools import partial
from pathlib import Path
from random import Random

import numpy as np

from ...learn.packed import Arrays, Turns, build, encode_to_fit, pack_rows, save_rows
from ...vl2.grounding import FULL
from ...vl2.prompts import GROUNDING, locate_prompt
from ..world.pairs import KINDS as PAIR_KINDS
from ..world.pairs import sample_comparison, sample_example_query, sample_pair
from ..world.phrases import answer, grounded_caption, normalized_box, sample_query
from ..world.questions import sample_question
from ..world.scene import Scene
from .datasets import SHARD, caption, conversation_shard, pack_scenes
from .things_tokenizer import CAPTION_REQUESTS
from .vl2 import ONE, TWO
from .vl2_spec import ConversationEncoder, write_folder

ONE_WIDTH, TWO_WIDTH = 288, 352
"""Tokens of the longest conversation about one image, and about two."""
MAX_TURNS = 6
"""Question-answer pairs of the longest conversation."""


def single_image_conversation(scene: Scene, rng: Random) -> Turns:
    """Two to six questions, grounding queries or captions about one image."""
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
    """Two to six questions about two images. The hardest kind, equality of colors, is the most frequent."""
    weights = [3 if kind == "same" else 1 for kind in PAIR_KINDS]
    kinds = rng.choices(PAIR_KINDS, weights, k=rng.randint(2, MAX_TURNS))
    questions = [sample_comparison(a, b, rng, kind) for kind in kinds]
    return [(question.text, question.answer) for question in questions]


def image_pair_shard(seed: int, encode: ConversationEncoder) -> Arrays:
    """Conversations about two images.

    Beside the first scenes there are the second scenes, named `second.*`, and `frame` float16 `[N, 4]`, the
    box (x0, y0, x1, y1 in 0..1) framed in the first image, zeros for none.
    """
    rng = Random(seed)
    rows, masks, firsts, seconds, frames = [], [], [], [], []
    for _ in range(SHARD):
        a, b = sample_pair(rng)
        frame = (0, 0, 0, 0)
        if rng.random() < 0.2:
            obj, question, query = sample_example_query(a, b, rng)
            frame, turns = normalized_box(obj), [(question, answer(query))]
        else:
            turns = two_image_conversation(a, b, rng)
        ids, mask = encode_to_fit(partial(encode, images=2), turns, TWO_WIDTH)
        rows.append(ids)
        masks.append(mask)
        firsts.append(a)
        seconds.append(b)
        frames.append(frame)
    second = {f"second.{name}": value for name, value in pack_scenes(seconds).items()}
    frame = {"frame": (np.array(frames) / FULL).astype(np.float16)}
    return {**pack_rows(rows, masks, TWO_WIDTH), **pack_scenes(firsts), **second, **frame}


def make_examples(folder: Path, one: int, two: int, seed: int, workers: int) -> None:
    """Write the folder's JSON files and its examples."""
    write_folder(folder)
    encode = ConversationEncoder(folder)
    one_shard = partial(
        conversation_shard,
        converse=single_image_conversation,
        encode=partial(encode, images=1),
        width=ONE_WIDTH,
    )
    two_shard = partial(image_pair_shard, encode=encode)
    save_rows(folder / ONE, build(one_shard, max(1, one // SHARD), seed, workers))
    save_rows(folder / TWO, build(two_shard, max(1, two // SHARD), seed + 5000, workers))


def main() -> None:
    """Command line: write the tokenizer, configs and examples of vl2-nano."""
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
