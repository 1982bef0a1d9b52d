"""The parsers of `bifrons eval` and its stages; imports nothing heavy."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .eval_judge_options import OFFICIAL_HELP, add_judge, add_math, add_read
from .options import add_force, add_model

_DETECTORS = "shapes, world, mask2former-official or mask2former-hf"


def _recipe() -> type:
    from ...eval.runs.recipe import Recipe

    return Recipe


def _math() -> type:
    from ...eval.math.run import MathOptions

    return MathOptions


def add_eval(commands: Any, command: Callable[..., Any], add_json: Callable[[Any], None]) -> None:
    """Add the parsers of `eval` and its stages.

    `command(commands, name, text, defaults)` makes a parser whose help shows the defaults of a dataclass.
    """
    parser = command(commands, "eval", "evaluate how well images follow their prompts, as GenEval does")
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    run = command(stages, "run", "generate, detect, score and report, or resume a run", _recipe)
    _add_run(run)
    _add_recipe(run)
    _add_detector(run)
    add_judge(run)
    _add_reasons(run)
    _add_processes(run, device=False)
    _add_ranks(run)
    add_json(run)
    generate = command(stages, "generate", "generate only the missing pictures of a run", _recipe)
    _add_run(generate)
    _add_recipe(generate)
    _add_processes(generate, device=False)
    _add_ranks(generate)
    detect = command(stages, "detect", "only detect objects in the pictures of a run")
    _add_run(detect)
    _add_detector(detect)
    _add_processes(detect)
    _add_ranks(detect)
    judge = command(stages, "judge", "only ask the judge about the pictures of a run")
    _add_run(judge)
    add_judge(judge)
    _add_processes(judge)
    _add_ranks(judge)
    _add_score(command(stages, "score", "score the detections of a run, or those in a file"), add_json)
    _add_run(command(stages, "report", "write report.md and report.html of a scored run"))
    _add_import(command(stages, "import", "evaluate pictures from elsewhere, in GenEval's folder layout"))
    read = command(stages, "read", "benchmarks of reading pictures: boxes, answers and choices")
    add_read(read, add_json)
    _add_processes(read, device=False)
    math = command(stages, "math", "questions with one right answer: pass@1 of boxed or last numbers", _math)
    add_math(math, add_json)
    _add_processes(math, device=False)
    _add_compare(
        command(stages, "compare", "compare evaluations, per kind of prompt, with intervals"), add_json
    )
    _add_leaderboard(command(stages, "leaderboard", "a table of several scored runs, best first"))
    _add_plan(command(stages, "plan", "how many prompts and pictures a difference of POINTS needs"))
    selftest = command(stages, "selftest", "plant faults in pictures and check that each is detected")
    selftest.add_argument(
        "--cases", type=int, default=20, metavar="N", help="cases of each fault (default: 20)"
    )
    selftest.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the scenes (default: 0)")


def _add_compare(parser: Any, add_json: Callable[[Any], None]) -> None:
    for name in ("a", "b"):
        parser.add_argument(name, metavar=name.upper(), type=Path, help="a scored run or a results.jsonl")
    parser.add_argument("more", metavar="C", nargs="*", default=[], type=Path, help="more of them")
    parser.add_argument(
        "--to-first", action="store_true", help="compare each with A only, not with every other"
    )
    add_json(parser)


def _add_leaderboard(parser: Any) -> None:
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="the folder of a scored run or import"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="page.html, table.md or rows.tex (default: the table on standard output)",
    )


def _add_plan(parser: Any) -> None:
    parser.add_argument("points", metavar="POINTS", type=float, help="the difference, in percentage points")
    for flag, default, text in (
        ("--score", 0.7, "the better model's score"),
        ("--agreement", 0.5, "correlation of a prompt's pictures"),
        ("--shared", 0.0, "correlation of the two models' scores over prompts"),
        ("--power", 0.8, "probability of seeing the difference"),
    ):
        parser.add_argument(
            flag, type=float, default=default, metavar="X", help=f"{text} (default: {default})"
        )
    parser.add_argument("--images-per-prompt", type=int, default=4, metavar="N", help="pictures per prompt")


def _add_run(parser: Any) -> None:
    parser.add_argument("-R", "--run-dir", required=True, type=Path, metavar="R", help="the run's folder")


def _add_recipe(parser: Any) -> None:
    """Options that aren't given are absent from the parsed arguments: a resumed run has stored them."""
    recipe = parser.add_argument_group("recipe")
    numbers = (
        ("--images-per-prompt", int, "pictures per prompt"),
        ("--limit", int, "use only N prompts, evenly spread over the suite"),
        ("--temperature", float, "0 always takes the likeliest token"),
        ("--top-k", int, "sample from the N likeliest tokens; 0 means all"),
        ("--top-p", float, "sample from the likeliest tokens whose probabilities add up to this"),
        ("--seed", int, "base seed of the pictures"),
        ("--suite-seed", int, "seed of the prompts of the suites shapes and shapes-hard"),
        ("--batch-size", int, "pictures generated together"),
    )
    given: dict[str, Any] = {"default": argparse.SUPPRESS}
    recipe.add_argument(
        "--suite",
        **given,
        metavar="NAME",
        help="geneval, shapes, shapes-hard; of questions: geneval2, wise, geneval++, dpg, genai, questions "
        "(default: shapes for a model that knows shapes alone, else geneval)",
    )
    recipe.add_argument(
        "--prompts",
        "--data",
        type=Path,
        metavar="PATH",
        help="the suite's own file or folder (geneval needs none)",
    )
    add_model(recipe, recipe=True)
    recipe.add_argument(
        "--template", **given, metavar="TEXT", help="text around each prompt, which stands as {prompt} in it"
    )
    recipe.add_argument(
        "--guidance-scale",
        type=float,
        metavar="X",
        **given,
        help="1 means no guidance (default: the model's own)",
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
        help=f"{_DETECTORS} (default: world for a model of the world of things, "
        "shapes for prompts about shapes alone, else mask2former-official)",
    )
    detector.add_argument(
        "--detector-weights", metavar="PATH", help="file or folder with the weights of Mask2Former or world"
    )
    detector.add_argument(
        "--clip-weights", metavar="PATH", help="folder of CLIP ViT-L/14, which classifies colours"
    )
    _add_options(detector)


def _add_options(parser: Any) -> None:
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="of GenEval's scorer, as its script takes them: threshold=0.3 counting_threshold=0.9 "
        "max_objects=16 max_overlap=1 position_threshold=0.1 bgcolor=#999 crop=1",
    )


def _add_reasons(parser: Any) -> None:
    parser.add_argument(
        "--official-reasons", action="store_true", help="give reasons in the words of GenEval's script"
    )


def _add_processes(parser: Any, device: bool = True) -> None:
    processes = parser.add_argument_group("processes")
    processes.add_argument(
        "--processes", type=int, metavar="N", help="number of processes (default: one per GPU or core)"
    )
    processes.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="CPU threads per process (default: 1; more helps large models but rounds differently)",
    )
    if device:
        processes.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the best available)")


def _add_ranks(parser: Any) -> None:
    parser.add_argument("--rank", type=int, metavar="I", help="rank of this process, from 0")
    parser.add_argument(
        "--world-size", type=int, metavar="N", help="number of ranks (default: from torchrun)"
    )


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
        "-o", "--output", type=Path, metavar="FILE", help="the results.jsonl to write, with --detections"
    )
    add_force(parser)
    parser.add_argument("--official", action="store_true", help=OFFICIAL_HELP)
    _add_options(parser)
    _add_reasons(parser)
    add_json(parser)


def _add_import(parser: Any) -> None:
    parser.add_argument(
        "source", metavar="DIR", type=Path, help="a folder with 00000/samples/0000.png and so on"
    )
    _add_run(parser)
    parser.add_argument("--images-per-prompt", type=int, metavar="N", help="expected pictures per prompt")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="a file with the suite's prompts, to report missing ones"
    )
    parser.add_argument("--model-name", metavar="NAME", help="the model that painted the pictures")
    parser.add_argument("--note", metavar="TEXT", help="anything else that a reader should know of them")
    _add_detector(parser)
    _add_reasons(parser)
    _add_processes(parser)
