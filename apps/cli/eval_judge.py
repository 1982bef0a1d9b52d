"""`bifrons eval` for suites that ask a judge questions about the pictures."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ...blocks.errors import OptionError, check_integer, counted, one_line
from ...eval.atomic_io import folder_lock
from ...eval.judges.judge import JudgeChoice
from ...eval.judges.score import score_run
from ...eval.judges.stage import JudgedRun, begin, judge_pictures, open_judged
from ...eval.runs.detect import images_of_run
from ...eval.runs.ranks import Ranks, join_ranks
from ...eval.runs.run_dir import RunDir, open_run
from ...eval.suites.catalog import CATALOG
from ...eval.suites.suite import read_wording
from ...scale.placement import Placement
from ..files import print_json
from ..notes import note
from .options import placement_options

_FLAGS = {
    "judge": "where",
    "judge_model": "model",
    "judge_version": "version",
    "judge_options": "options",
    "judge_key": "key",
    "judge_dtype": "dtype",
    "judge_quantize": "quantize",
    "judge_workers": "workers",
}
"""Options of the command line, and the fields of `JudgeChoice` that they set."""
_PLACEMENT = ("judge_device_map", "judge_max_memory", "judge_eager")
_DETECTOR = ("detector", "detector_weights", "clip_weights")


def alone(run_dir: Path, ranks: Ranks) -> AbstractContextManager[None]:
    """Hold the run folder. Linked ranks do so together, through rank 0; ranks by hand share it."""
    if ranks.linked and ranks.rank:
        return nullcontext()
    return folder_lock(run_dir, shared=ranks.size > 1 and not ranks.linked)


def is_judged(run_dir: Path) -> bool:
    """Whether a run's pictures were judged rather than looked at by a detector."""
    return os.path.isfile(run_dir / "judge.json")


def refuse_options(args: argparse.Namespace, suite: str) -> None:
    """Raise OptionError if an option of a judge is given for a suite that has none."""
    own = (*_FLAGS, *_PLACEMENT, "judge_prompt", "answers", "official")
    names = [name for name in own if getattr(args, name, None)]
    if names:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise OptionError(f"{flags} is for suites of questions ({', '.join(CATALOG)}); this run is {suite}")


def run(args: argparse.Namespace, run_dir: RunDir, ranks: Ranks, generate: Callable[[], None]) -> int:
    """Generate missing images, judge, score and report."""
    given = [f"--{name.replace('_', '-')}" for name in _DETECTOR if getattr(args, name, None)]
    if given:
        raise OptionError(
            f"{', '.join(given)} is for suites with a detector; {run_dir.recipe.suite} asks a --judge"
        )
    _check_official(args, run_dir)
    choice, judged = _begin(args, run_dir, ranks)
    generate()
    _judge(args, run_dir, choice, judged, ranks)
    if ranks.rank == 0:
        content = score_run(run_dir, args.official)
        if args.json:
            note_problems(content["not_scored"])
            write_reports(args.run_dir, show=False)
            print_json({**content, "folder": str(args.run_dir)})
        else:
            _print_summary(content)
            write_reports(args.run_dir)
    return 0


def judge(args: argparse.Namespace) -> int:
    """Ask the judge about the images of a run."""
    with join_ranks(args.rank, args.world_size) as ranks:
        run_dir = open_run(args.run_dir)
        if run_dir.recipe.suite not in CATALOG:
            raise OptionError(
                f"the suite {run_dir.recipe.suite} asks no questions; accepted here: {', '.join(CATALOG)} "
                "(`bifrons eval detect` looks at the pictures of this one)"
            )
        _check_official(args, run_dir)
        with alone(args.run_dir, ranks):
            choice, judged = _begin(args, run_dir, ranks)
            _judge(args, run_dir, choice, judged, ranks)
            if ranks.rank == 0:
                print(judged.answers)
    return 0


def score(args: argparse.Namespace) -> int:
    """Score the answers of a judged run."""
    content = score_run(open_run(args.run_dir), args.official)
    if args.json:
        print_json(content)
    else:
        _print_summary(content)
    return 0


def note_problems(problems: Sequence[Mapping[str, str]]) -> None:
    """Say on stderr which pictures were not scored, and why."""
    for problem in problems:
        note(one_line(f"not scored: {problem['filename']}: {problem['reason']}"))


def write_reports(run_dir: Path, show: bool = True) -> None:
    """Write the reports of a judged run that is scored, and print their paths to `show` them."""
    from ...eval.report.suite import write_suite_report

    paths = write_suite_report(run_dir)
    if show:
        print(*paths, sep="\n")


def _check_official(args: argparse.Namespace, run_dir: RunDir) -> None:
    if args.official and not CATALOG[run_dir.recipe.suite].has_official_switch:
        raise OptionError(f"--official is for the suite dpg; {run_dir.recipe.suite} has no such switch")


def _begin(args: argparse.Namespace, run_dir: RunDir, ranks: Ranks) -> tuple[JudgeChoice, JudgedRun]:
    """The judge named on the command line, or the run's. A failure comes before hours of image generation."""
    suite = CATALOG[run_dir.recipe.suite]
    given = {field: getattr(args, flag) for flag, field in _FLAGS.items() if getattr(args, flag) is not None}
    if "workers" in given:
        check_integer("judge-workers", given["workers"], 1, 256)
    if "where" not in given:
        if not is_judged(args.run_dir):
            raise OptionError(
                f"the suite {suite.name} asks questions about pictures; say who answers with --judge: "
                f"http(s)://host:port of an OpenAI endpoint, vl2:MODEL or janus:MODEL (officially "
                f"{suite.judge or 'none'})"
            )
        old = open_judged(args.run_dir)
        given = {**old.choice_fields, **given}
    placement = Placement(**placement_options(args, "judge_"))
    choice = JudgeChoice(**given, placement=placement).resolved()
    placement.check(args.device, args.processes)
    wording = None if args.judge_prompt is None else read_wording(args.judge_prompt, suite)
    if wording is None and is_judged(args.run_dir):
        wording = open_judged(args.run_dir).wording
    if ranks.rank:
        ranks.wait()
        return choice, open_judged(args.run_dir)
    judged = begin(args.run_dir, suite, choice, wording, args.answers)
    ranks.wait()
    note(f"judge: {choice.model} ({choice.version[:40]})")
    return choice, judged


def _judge(
    args: argparse.Namespace, run_dir: RunDir, choice: JudgeChoice, judged: JudgedRun, ranks: Ranks
) -> None:
    images = images_of_run(run_dir)
    judge_pictures(judged, images, choice, args.device, args.processes, args.threads, ranks)


def _print_summary(content: dict[str, Any]) -> None:
    """Print a suite's scores as a table."""
    note_problems(content["not_scored"])
    width = max(len(name) for name in (*content["groups"], "overall"))
    for name, group in content["groups"].items():
        low, high = group["interval"]
        prompts = counted(group["prompts"], "prompt")
        print(f"{name:{width}}  {group['score']:7.2%}  {low:.1%} to {high:.1%}  {prompts}")
    if content["overall"] is None:
        print(f"{'overall':{width}}  not computed: no picture of {', '.join(content['missing_groups'])}")
    else:
        low, high = content["overall_interval"]
        print(f"{'overall':{width}}  {content['overall']:7.2%}  {low:.1%} to {high:.1%}")
    for obstacle in content["obstacles"]:
        print(f"not comparable with published figures: {obstacle}")
