"""What `janus-nano` can do, judged by the exact detector: `python -m bifrons.eval.nano.janus --help`.

Generates images for fresh sentences of the small world and scores them by GenEval's rules; asks about fresh
scenes; encodes and decodes fresh scenes. Combinations held out of training are reported separately.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import compress
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...blocks.chat.pipeline import ChatPipeline
from ...janus.pipeline import JanusPipeline
from ...nano.world.detector import detect, to_geneval
from ...nano.world.questions import KINDS, sample_question
from ...nano.world.renderer import to_pil
from ...nano.world.scene import sample_scene
from ...nano.world.sentences import suite
from ..geneval.scoring import Summary, format_table, intervals, results_row, score_row, summarize
from .scores import ask_all, same_answer

SIDE = 128
"""Side of an image in pixels."""

TITLES = {"train": "combinations seen in training", "held_out": "combinations left out"}

Table = dict[str, tuple[int, int]]
"""(right, asked) by kind."""


def tally(kinds: Sequence[str], right: Sequence[bool]) -> Table:
    """Counts by kind, from the kind of each question and whether its answer is right."""
    asked, correct = Counter(kinds), Counter(compress(kinds, right))
    return {kind: (correct[kind], count) for kind, count in asked.items()}


def score_answers(pipe: ChatPipeline, scenes: int, seed: int, split: str) -> Table:
    """(right, asked) for each kind of question; one question a scene. In the held-out split, only questions
    about held-out combinations count."""
    rng, cases = Random(seed), []
    while len(cases) < scenes:
        scene = sample_scene(rng, split)
        question = sample_question(scene, rng, KINDS[len(cases) % len(KINDS)])
        if question.held_out == (split == "held_out"):
            cases.append((to_pil(scene, SIDE), question))
    answers = ask_all(pipe, [([picture], question.text) for picture, question in cases], 16)
    questions = [question for _, question in cases]
    right = [same_answer(answer, one.answer) for answer, one in zip(answers, questions, strict=True)]
    return tally([question.kind for question in questions], right)


def table_line(name: str, table: Table) -> str:
    """A printed line: the share of right answers, in all and by kind."""
    right, asked = (sum(column) for column in zip(*table.values(), strict=True))
    kinds = ", ".join(f"{kind} {r / n:.1%}" for kind, (r, n) in sorted(table.items()))
    return f"{name:<28} {right / asked:7.2%}  ({right} of {asked}: {kinds})"


def judge(image: Image.Image) -> dict[str, Any]:
    """Boxes and colors of one image, as the scorer's rows hold them."""
    torch.set_num_threads(1)
    return to_geneval(detect(image))


def judge_all(images: Sequence[Image.Image], workers: int) -> list[dict[str, Any]]:
    """`judge` for each image, in `workers` processes."""
    if workers <= 1:
        return [judge(image) for image in images]
    # Forked children of a process that has used torch's threads can hang: start them afresh.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return list(pool.map(judge, images, chunksize=16))


def score_generation(
    pipe: JanusPipeline,
    sentences: int,
    per_sentence: int,
    seed: int,
    split: str,
    options: dict[str, Any],
    workers: int,
    folder: Path | None = None,
) -> tuple[Summary, list[dict[str, Any]]]:
    """Generate and score images; result rows hold the reason of every failure. `folder` keeps the images."""
    rows = suite(sentences, seed, split)
    prompts, seeds = [row["prompt"] for row in rows], list(range(seed, seed + len(rows) * per_sentence))
    images = pipe.generate(prompts, per_sentence, seed=seeds, progress=False, **options)
    judged = judge_all(images, workers)
    results = []
    for index, (image, detections) in enumerate(zip(images, judged, strict=True)):
        name = f"{index // per_sentence:05d}/samples/{index % per_sentence:04d}.png"
        row = {"filename": name, "metadata": rows[index // per_sentence], **detections}
        results.append(results_row(row, score_row(row)))
        if folder is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(folder / name)
    summary = summarize(results)
    return Summary(**{**vars(summary), "intervals": intervals(results)}), results


def score_tokenizer(pipe: JanusPipeline, scenes: int, seed: int) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of encode then decode, on 8-bit values, one per scene."""
    rng, values = Random(seed), []
    for _ in range(scenes):
        picture = to_pil(sample_scene(rng, "any"), SIDE)
        back = pipe.decode_codes(pipe.encode_image(picture))[0]
        error = np.square(np.asarray(picture, np.float64) - np.asarray(back, np.float64)).mean()
        values.append(10 * np.log10(255**2 / max(error, 1e-6)))
    return np.array(values)


def main() -> None:
    """Print every figure of janus-nano."""
    parser = argparse.ArgumentParser(description="What janus-nano can do, judged by the exact detector.")
    parser.add_argument("-m", "--model", default="janus-nano")
    parser.add_argument("--sentences", type=int, default=300)
    parser.add_argument("--per-sentence", type=int, default=4)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--guidance-scale", type=float, nargs="+", default=None)
    parser.add_argument("--temperature", type=float, default=1.0)
    for name in ("--device", "--dtype", "--quantize"):
        parser.add_argument(name)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, help="keep pictures and results here")
    args = parser.parse_args()
    pipe = JanusPipeline.from_pretrained(args.model, args.device, args.dtype, quantize=args.quantize)
    for scale in args.guidance_scale or [pipe.guidance_scale]:
        options = {"guidance_scale": scale, "temperature": args.temperature}
        for split in ("train", "held_out"):
            print(
                f"\nPainting, guidance {scale:g}, temperature {args.temperature:g}, " + TITLES[split],
                flush=True,
            )
            folder = args.folder and args.folder / f"{split}-{scale:g}"
            summary, results = score_generation(
                pipe, args.sentences, args.per_sentence, args.seed, split, options, args.workers, folder
            )
            print(format_table(summary), flush=True)
            if folder:
                (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in results))
    print("\nQuestions")
    for split in ("train", "held_out"):
        print(table_line(TITLES[split], score_answers(pipe, args.scenes, args.seed, split)), flush=True)
    values = score_tokenizer(pipe, min(args.scenes, 200), args.seed)
    print(f"\nEncode then decode: {values.mean():.2f} dB on average, {values.min():.2f} dB at worst")


if __name__ == "__main__":
    main()
