"""The parser of `bifrons train sft`, and options of all methods; imports nothing heavy."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..defaults import DEFAULT_MODEL, default_model
from .options import MODEL_HELP, add_revision


def add_trained_model(parser: Any) -> None:
    """Add the model to train and where the run's files go."""
    parser.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        default=default_model(),
        help=f"{MODEL_HELP} (default: BIFRONS_MODEL, else {DEFAULT_MODEL})",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the best available)")
    add_gpus(parser, "all, or the one that --device names")
    parser.add_argument(
        "--dtype",
        help="of weights that stay as they are: float32, bfloat16 or float16 (default: float32 on the CPU, "
        "bfloat16 on GPUs)",
    )
    add_revision(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="RUN",
        help="the run's folder; the same command goes on where it was stopped",
    )


def add_gpus(parser: Any, default: str) -> None:
    """Add `--gpus`; `default` says how many there are without it."""
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="GPUs of this machine to work on, each by a process of its own "
        f"(default: {default}); with --device cpu, so many processes (default: 1)",
    )


def add_lora(parser: Any) -> None:
    """Add the options of a LoRA adapter."""
    lora = parser.add_argument_group("LoRA")
    lora.add_argument(
        "--lora",
        type=int,
        nargs="?",
        const=16,
        metavar="RANK",
        help="train an adapter of this rank (16 if none is named) in place of all weights",
    )
    lora.add_argument(
        "--lora-alpha", type=float, metavar="X", help="its product is scaled by X / RANK (default: 2 RANK)"
    )
    lora.add_argument(
        "--image-head",
        nargs="?",
        const="lora",
        choices=("lora", "whole"),
        help="also train what turns hidden states into image tokens, and these into embeddings: by products "
        "of low rank too, or as a whole, which makes a larger file (lora if neither is named)",
    )
    lora.add_argument(
        "--lora-experts",
        action="store_true",
        help="also of a mixture's experts and of latent attention's kv_b_proj; such an adapter turns CUDA "
        "graphs off where it isn't merged",
    )
    lora.add_argument(
        "--adapter", type=Path, metavar="FOLDER", help="train this adapter on, in place of a new one"
    )


def add_numbers(parser: Any, options: Iterable[tuple[str, type, str]]) -> None:
    """Add options whose defaults a dataclass holds: those not given are absent from the parsed arguments."""
    for flag, kind, text in options:
        metavar = "N" if kind is int else "X"
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=text)


def sft_options() -> type:
    """The dataclass with the defaults."""
    from ...learn.sft import SftOptions

    return SftOptions


def add_sft(parser: Any) -> None:
    """Add the arguments of `train sft`."""
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="PATH[:WEIGHT]",
        help="a folder of pictures with .txt captions or metadata.jsonl, or a .jsonl, .json or .csv file of "
        "prompts and pictures or of conversations; may be repeated, and is drawn from by its weight "
        "(default: its number of rows)",
    )
    add_trained_model(parser)
    parser.add_argument(
        "--on-bad-rows",
        choices=("stop", "skip"),
        default="stop",
        help="what to do if rows can't be used, all of which are named first (default: stop)",
    )
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="train new weights of the text model whose folder -m names: config.json and tokenizer.json are "
        "enough",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs", type=float, default=3.0, metavar="X", help="rounds through the data (default: 3)"
    )
    length.add_argument("--steps", type=int, metavar="N", help="steps of the optimizer, in place of --epochs")
    add_lora(parser)
    _add_optimization(parser.add_argument_group("optimization"))
    observation = parser.add_argument_group("observation")
    observation.add_argument(
        "--validation",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="rows kept out of training, whose loss is reported before and after (default: 0.05, at most 64 "
        "rows of each --data)",
    )
    add_observation(observation, 100)
    _add_replay(parser.add_argument_group("against forgetting"))


def _add_replay(replay: Any) -> None:
    replay.add_argument(
        "--replay",
        type=float,
        metavar="SHARE",
        help="this share of the rows trained on, 0 to 1, are pictures that the model paints before training",
    )
    replay.add_argument(
        "--replay-prompts", type=Path, metavar="FILE", help="what it paints, one prompt a line"
    )
    replay.add_argument(
        "--replay-pictures", type=int, default=256, metavar="N", help="how many (default: 256)"
    )


def _add_optimization(group: Any) -> None:
    add_numbers(
        group,
        [
            ("--batch-size", int, "rows of a step"),
            ("--rows-at-once", int, "rows computed together, as memory allows"),
            ("--weight-decay", float, "of AdamW"),
            ("--warmup", float, "share of the steps in which the learning rate rises"),
            ("--clip", float, "longest gradient"),
            ("--image-weight", float, "of the loss of image tokens"),
            ("--text-weight", float, "of the loss of answers"),
            ("--unconditional", float, "share of pictures learned without their prompt, for guidance"),
            ("--seed", int, "of the order of rows and of new weights"),
            ("--save-every", int, "steps between checkpoints"),
        ],
    )
    group.add_argument(
        "--learning-rate", type=float, metavar="X", help="its peak (default: 2e-4 with --lora, else 2e-5)"
    )
    group.add_argument(
        "--train-vision", action="store_true", help="train the vision encoder, too; not with --lora"
    )
    group.add_argument(
        "--recompute", action="store_true", help="compute activations again for the gradient: less memory"
    )


def add_observation(group: Any, every: int) -> None:
    """Add the options of samples, `every` so many steps by default, and of evaluations."""
    group.add_argument(
        "--sample-every",
        type=int,
        default=every,
        metavar="N",
        help=f"steps between samples for RUN/samples.html; 0 makes none (default: {every})",
    )
    group.add_argument(
        "--sample",
        action="append",
        metavar="PROMPT",
        help="what to sample for it; may be repeated (default: four prompts of the data)",
    )
    group.add_argument(
        "--eval",
        action="append",
        default=[],
        metavar="SUITE",
        help="evaluate the model before and after, as `bifrons eval run --suite` does, and compare; may be "
        "repeated",
    )
    group.add_argument("--eval-limit", type=int, metavar="N", help="use only N prompts of each suite")
