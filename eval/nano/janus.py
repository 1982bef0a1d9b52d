"""What `janus-nano` can do, judged by the exact detector: `python -m bifrons.eval.nano.janus --help`.

Paints pictures for fresh sentences of the small world and scores them by GenEval's rules; asks about fresh
scenes; encodes and decodes fresh scenes. What was left out of training is reported apart.
"""

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from ...janus.pipeline import JanusPipeline
from ...nano.world.detector import detect, to_geneval
from ...nano.world.questions import sample_scene
from ...nano.world.renderer import to_pil
from ...nano.world.sentences import suite
from ..geneval.scoring import Summary, format_table, intervals, results_row, score_row, summarize
from .reading import SIDE, TITLES, score_answers, table_line


def judge(picture: Image.Image) -> dict[str, Any]:
    """Boxes and colours of one picture, in the form of a scorer's row."""
    torch.set_num_threads(1)
    return to_geneval(detect(picture))


def judge_all(pictures: Sequence[Image.Image], workers: int) -> list[dict[str, Any]]:
    if workers <= 1:
        return [judge(picture) for picture in pictures]
    # Forked children of a process that has used torch's threads can hang: start them afresh.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return list(pool.map(judge, pictures, chunksize=16))


def score_paintings(
    pipe: JanusPipeline,
    sentences: int,
    per_sentence: int,
    seed: int,
    split: str,
    options: dict[str, Any],
    workers: int,
    folder: Path | None = None,
) -> tuple[Summary, list[dict[str, Any]]]:
    """Paint and score; the results rows carry the reason of every failure. `folder` keeps the pictures."""
    rows = suite(sentences, seed, split)
    prompts, seeds = [row["prompt"] for row in rows], list(range(seed, seed + len(rows) * per_sentence))
    pictures = cast(list[Image.Image], pipe.generate(prompts, per_sentence, seed=seeds, **options))
    found = judge_all(pictures, workers)
    results = []
    for index, (picture, seen) in enumerate(zip(pictures, found, strict=True)):
        name = f"{index // per_sentence:05d}/samples/{index % per_sentence:04d}.png"
        row = {"filename": name, "metadata": rows[index // per_sentence], **seen}
        results.append(results_row(row, score_row(row)))
        if folder is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(folder / name)
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
            home = args.folder and args.folder / f"{split}-{scale:g}"
            summary, results = score_paintings(
                pipe, args.sentences, args.per_sentence, args.seed, split, options, args.workers, home
            )
            print(format_table(summary), flush=True)
            if home:
                (home / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in results))
    print("\nQuestions")
    for split in ("train", "held_out"):
        print(table_line(TITLES[split], score_answers(pipe, args.scenes, args.seed, split)), flush=True)
    values = score_tokenizer(pipe, min(args.scenes, 200), args.seed)
    print(f"\nEncode then decode: {values.mean():.2f} dB on average, {values.min():.2f} dB at worst")


if __name__ == "__main__":
    main()
