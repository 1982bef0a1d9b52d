"""The arguments of `bifrons eval` and its stages; imports nothing heavy."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

_KINDS = "shapes, mask2former-official or mask2former-hf"


def _recipe() -> type:
    from ...eval.runs.recipe import Recipe

    return Recipe


def add_eval(commands: Any, command: Callable[..., Any], add_json: Callable[[Any], None]) -> None:
    """Add `eval` with its stages. `command(commands, name, text, defaults)` makes a parser whose help shows
    the defaults of a dataclass."""
    parser = command(commands, "eval", "evaluate how well a model paints what was asked for, as GenEval does")
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    run = command(stages, "run", "paint, look, score and report, or go on where a run stopped", _recipe)
    _add_run(run)
    _add_recipe(run)
    _add_detector(run)
    _add_processes(run)
    paint = command(stages, "generate", "only paint the pictures of a run, or those that it lacks", _recipe)
    _add_run(paint)
    _add_recipe(paint)
    _add_processes(paint)
    _add_ranks(paint)
    look = command(stages, "detect", "only look at the pictures of a run")
    _add_run(look)
    _add_detector(look)
    _add_processes(look)
    _add_ranks(look)
    _add_score(command(stages, "score", "score detections: of a run, or of any detector in a file"), add_json)
    _add_run(command(stages, "report", "write report.md and report.html of a scored run"))
    _add_import(command(stages, "import", "evaluate pictures that anybody painted, in GenEval's layout"))
    compare = command(stages, "compare", "the difference of two evaluations, per kind, with intervals")
    for name in ("a", "b"):
        compare.add_argument(name, metavar=name.upper(), type=Path, help="a scored run or a results.jsonl")
    add_json(compare)
    selftest = command(stages, "selftest", "plant faults in pictures and see that each is found")
    selftest.add_argument("--cases", type=int, default=20, metavar="N", help="of each fault (default: 20)")
    selftest.add_argument("--seed", type=int, default=0, metavar="N", help="of the scenes (default: 0)")


def _add_run(parser: Any) -> None:
    parser.add_argument("-R", "--run-dir", required=True, type=Path, metavar="R", help="the run's folder")


def _add_recipe(parser: Any) -> None:
    """What is not given is not in the result: a run that goes on has it already."""
    recipe = parser.add_argument_group("recipe")
    numbers = (
        ("--images-per-prompt", int, "pictures of each prompt"),
        ("--limit", int, "so many prompts only, evenly spread over the suite"),
        ("--temperature", float, "0 always takes the likeliest token"),
        ("--top-k", int, "sample from the N likeliest tokens; 0 is all"),
        ("--top-p", float, "sample from the likeliest tokens that reach this probability"),
        ("--seed", int, "where the pictures' seeds come from"),
        ("--suite-seed", int, "of the sentences of the suite shapes"),
        ("--batch-size", int, "pictures that are painted together"),
    )
    given: dict[str, Any] = {"default": argparse.SUPPRESS}
    recipe.add_argument("--suite", **given, metavar="NAME", help="shapes or geneval")
    recipe.add_argument("--prompts", type=Path, metavar="FILE", help="GenEval's prompts, where not fetched")
    recipe.add_argument("-m", "--model", **given, help="a folder, a hub id or an embedded model")
    recipe.add_argument("--dtype", **given, help="float32, bfloat16 or float16 (default: the device's own)")
    recipe.add_argument("--template", **given, metavar="TEXT", help="what to put around each sentence")
    recipe.add_argument(
        "--guidance-scale", type=float, metavar="X", **given, help="1 is without (default: the model's own)"
    )
    for flag, kind, text in numbers:
        recipe.add_argument(flag, type=kind, metavar="X" if kind is float else "N", **given, help=text)
    recipe.add_argument(
        "--seed-policy",
        **given,
        metavar="NAME",
        help="per-picture, or official: picture j of every prompt has seed + j",
    )


def _add_detector(parser: Any) -> None:
    detector = parser.add_argument_group("detector")
    detector.add_argument(
        "--detector",
        metavar="NAME",
        help=f"{_KINDS} (default: shapes for the small world, else the official one)",
    )
    detector.add_argument("--detector-weights", metavar="PATH", help="the Mask2Former's file or folder")
    detector.add_argument("--clip-weights", metavar="PATH", help="the folder of CLIP ViT-L/14, for colours")


def _add_processes(parser: Any) -> None:
    how = parser.add_argument_group("processes")
    how.add_argument("--processes", type=int, metavar="N", help="at once (default: one per GPU or core)")
    how.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="of each process on the CPU (default: 1; more is for large models, and rounds differently)",
    )
    how.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the best there is)")


def _add_ranks(parser: Any) -> None:
    parser.add_argument("--rank", type=int, metavar="I", help="this process is number I, from 0, ...")
    parser.add_argument("--world-size", type=int, metavar="N", help="... of N (default: as torchrun says)")


def _add_score(parser: Any, add_json: Callable[[Any], None]) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-R", "--run-dir", type=Path, metavar="R", help="a run's folder")
    source.add_argument(
        "--detections",
        type=Path,
        metavar="FILE",
        help="a .jsonl or .jsonl.gz of {filename, metadata, boxes, colors}",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the results.jsonl of --detections to write"
    )
    add_json(parser)


def _add_import(parser: Any) -> None:
    parser.add_argument("source", metavar="DIR", type=Path, help="with 00000/samples/0000.png and so on")
    _add_run(parser)
    parser.add_argument("--images-per-prompt", type=int, metavar="N", help="how many there should be")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="the suite, to tell missing prompts")
    _add_detector(parser)
    _add_processes(parser)
