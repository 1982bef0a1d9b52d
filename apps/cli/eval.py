"""`bifrons eval`: the stages of an evaluation."""

import argparse
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

from ...blocks.adapter_choice import parse_adapter
from ...blocks.checkpoints.hub import find_model_folder
from ...blocks.errors import BifronsError, OptionError, counted
from ...eval.atomic_io import folder_lock, read_json
from ...eval.geneval.options import parse_options, read_options
from ...eval.geneval.scoring import format_table
from ...eval.geneval.suites import geneval_prompts
from ...eval.runs.detect import DetectorChoice, collect, detect_objects, images_of_run
from ...eval.runs.generate import generate_images
from ...eval.runs.import_images import ImageSet, record_import, scan_folder
from ...eval.runs.ranks import Ranks, join_ranks
from ...eval.runs.recipe import Recipe
from ...eval.runs.run_dir import RunDir, open_run
from ...eval.runs.score import score_file, summary_json
from ...eval.runs.stages import load_images, prepare, score_run
from ...eval.suites.catalog import CATALOG
from ...scale.placement import Placement
from ..defaults import default_model
from ..files import exists_error, print_json
from ..notes import note
from ..pipelines import label
from . import eval_compare, eval_judge, eval_math, eval_read
from .eval_judge import alone
from .options import given_fields, placement_options


def evaluate(args: argparse.Namespace) -> int:
    """Run the stage named on the command line and return the exit status."""
    stages = {
        "run": run,
        "generate": generate,
        "detect": detect,
        "judge": eval_judge.judge,
        "score": score,
        "report": report,
        "import": import_images,
        "compare": eval_compare.compare,
        "leaderboard": eval_compare.leaderboard,
        "plan": plan,
        "read": eval_read.read,
        "math": eval_math.math,
        "selftest": selftest,
    }
    return stages[args.stage](args)


def run(args: argparse.Namespace) -> int:
    """Run all stages: generate missing images, detect, score and report. Of ranks by hand, the one that ends
    its share of the painting last does the rest."""
    if (args.rank is not None or args.world_size is not None) and not _paint_share(args):
        return 0
    with join_ranks() as ranks:
        run_dir = _open_run(args, ranks)
        if run_dir.recipe.suite in CATALOG:
            with alone(args.run_dir, ranks):
                return eval_judge.run(args, run_dir, ranks, partial(_generate, run_dir, args, ranks))
        eval_judge.refuse_options(args, run_dir.recipe.suite)
        with alone(args.run_dir, ranks):
            choice = _choose_detector(args, run_dir.detector)
            _check_detector(choice, args.device, ranks)
            _generate(run_dir, args, ranks)
            image_set = ImageSet(images_of_run(run_dir))
            detect_objects(
                args.run_dir, image_set.images, choice, args.device, args.processes, args.threads, ranks
            )
            if ranks.rank == 0:
                _finish(args.run_dir, image_set, args.official_reasons, args.json)
            return 0


def generate(args: argparse.Namespace) -> int:
    """Generate the missing images of a run."""
    with join_ranks(args.rank, args.world_size) as ranks:
        run_dir = _open_run(args, ranks)
        with alone(args.run_dir, ranks):
            _generate(run_dir, args, ranks)
        if ranks.rank == 0 and not getattr(args, "json", False):  # as where `run` paints a rank's share
            keys = run_dir.image_keys()
            missing = len(run_dir.unfinished(keys))
            painted = counted(len(keys) - missing, "picture")
            print(f"{run_dir.images_dir}: {painted}, {missing:,} to be painted")
    return 0


def detect(args: argparse.Namespace) -> int:
    """Detect objects in the images of a run."""
    with join_ranks(args.rank, args.world_size) as ranks:
        image_set = load_images(args.run_dir)
        choice = _choose_detector(args, image_set.detector)
        _check_detector(choice, args.device, ranks)
        images = image_set.images
        with alone(args.run_dir, ranks):
            detect_objects(args.run_dir, images, choice, args.device, args.processes, args.threads, ranks)
            if ranks.rank == 0 and (ranks.linked or ranks.size == 1):
                collect(args.run_dir, images)
                print(args.run_dir / "detections.jsonl")
    return 0


def score(args: argparse.Namespace) -> int:
    """Score the detections of a run, or those in a file."""
    if args.detections is None:
        if args.output is not None or args.force:
            raise OptionError(
                "--output and --force go with --detections; a run's results replace older ones in its folder"
            )
        if eval_judge.is_judged(args.run_dir):
            return eval_judge.score(args)
        eval_judge.refuse_options(args, "one with a detector")
        if args.options:
            raise OptionError("--options goes with --detections here; a run's are those of its detections")
        summary, problems = score_run(args.run_dir, official_reasons=args.official_reasons)
        options = read_options(read_json(args.run_dir / "detect.json").get("options", {}))
        eval_judge.note_problems(problems)
    else:
        eval_judge.refuse_options(args, "one with a detector")
        if args.output is None:
            raise OptionError("--detections needs --output FILE, the results.jsonl to write")
        options = parse_options(args.options)
        _check_new(args.output, args.force)
        summary = score_file(
            args.detections, args.output, options=options, official_reasons=args.official_reasons
        )
    if args.json:
        print_json(summary_json(summary, options=options))
    else:
        print(format_table(summary))
    return 0


def report(args: argparse.Namespace) -> int:
    """Write the reports of a scored run."""
    if eval_judge.is_judged(args.run_dir):
        eval_judge.write_reports(args.run_dir)
    else:
        _write_reports(args.run_dir)
    return 0


def import_images(args: argparse.Namespace) -> int:
    """Evaluate images that were generated elsewhere."""
    rows = geneval_prompts(args.prompts) if args.prompts else None
    image_set = scan_folder(args.source, args.images_per_prompt, rows)
    choice = _choose_detector(args, image_set.detector)
    _check_detector(choice, args.device, Ranks())
    record_import(args.run_dir, args.source, args.images_per_prompt, args.prompts, args.model_name, args.note)
    with alone(args.run_dir, Ranks()):
        detect_objects(args.run_dir, image_set.images, choice, args.device, args.processes, args.threads)
        _finish(args.run_dir, image_set, args.official_reasons)
        return 0


def plan(args: argparse.Namespace) -> int:
    """Print how many prompts and pictures a difference needs."""
    from ...eval.geneval.plan import needed_prompts

    prompts = needed_prompts(
        args.points / 100, args.score, args.images_per_prompt, args.agreement, args.shared, args.power
    )
    points = f"{args.points:g} point" + ("" if args.points == 1 else "s")
    print(
        f"a difference of {points} is seen with probability {args.power:g} after "
        f"{counted(prompts, 'prompt')}, {counted(prompts * args.images_per_prompt, 'picture')} of each model "
        "(of a kind, or of all kinds for the overall score)"
    )
    return 0


def selftest(args: argparse.Namespace) -> int:
    """Test the scorer on images with planted faults; the status is 1 if any verdict was wrong."""
    from ...eval.geneval.selftest import format_selftest, run_selftest

    results, passed = run_selftest(args.cases, args.seed)
    print(format_selftest(results))
    return 0 if passed else 1


def _open_run(args: argparse.Namespace, ranks: Ranks) -> RunDir:
    """Open or create the run. With linked ranks, rank 0 creates the folder before the others open it."""
    if ranks.rank:
        ranks.wait()
    Placement(**placement_options(args)).check(args.device, args.processes)
    given = given_fields(args, Recipe)
    if "adapter" in args:
        given["adapters"] = tuple(str(parse_adapter(text)) for text in args.adapter)
    if not os.path.isfile(args.run_dir / "run.json"):
        given.setdefault("model", default_model())
    run_dir = prepare(args.run_dir, given, args.device, args.prompts)
    if not ranks.rank:
        ranks.wait()
        if text := label(find_model_folder(run_dir.recipe.model)):
            note(text)
    return run_dir


def _paint_share(args: argparse.Namespace) -> bool:
    """Paint the share of a rank by hand; whether all is painted then, and no other rank still at work."""
    generate(args)
    run_dir = open_run(args.run_dir)
    if not run_dir.unfinished(run_dir.image_keys()):
        with suppress(BifronsError), folder_lock(args.run_dir):
            return True
    note("the rank that ends last looks at the pictures and scores them")
    if args.json:
        print_json({"folder": str(args.run_dir)})  # no summary yet
    return False


def _generate(run_dir: RunDir, args: argparse.Namespace, ranks: Ranks) -> None:
    recipe = run_dir.recipe
    if ranks.rank == 0:
        total = len(run_dir.image_keys())
        adapted = "".join(f", adapter {text}" for text in recipe.adapters)
        quantized = "" if recipe.quantize is None else f" {recipe.quantize}"
        note(
            f"{recipe.model} on {recipe.suite}: {counted(total, 'picture')}, "
            f"guidance {recipe.guidance_scale:g}, temperature {recipe.temperature:g}, "
            f"top-k {recipe.top_k}, top-p {recipe.top_p:g}, "
            f"seed {recipe.seed} ({recipe.seed_policy}), {recipe.dtype}{quantized}{adapted}"
        )
    placement = Placement(**placement_options(args))
    generate_images(run_dir, args.device, args.processes, args.threads, ranks, placement)


def _choose_detector(args: argparse.Namespace, usual: str | None) -> DetectorChoice:
    """The detector named on the command line, else the usual one of the pictures."""
    kind = args.detector or usual
    if kind is None:
        raise OptionError(
            "no prompt says what a detector looks for; accepted: rows with 'include', or for a suite of "
            "questions `bifrons eval judge`"
        )
    return DetectorChoice(kind, args.detector_weights, args.clip_weights, parse_options(args.options))


def _check_detector(choice: DetectorChoice, device: str | None, ranks: Ranks) -> None:
    """Load the detector and print its name, so that a failure comes before hours of image generation."""
    detector = choice.make(device)
    if ranks.rank == 0:
        caveat = "" if detector.comparable else "; its scores are not comparable with GenEval's"
        note(f"detector: {detector.name}{caveat}")


def _finish(run_dir: Path, image_set: ImageSet, official_reasons: bool, json: bool = False) -> None:
    """Score the detected images, write the reports and print the table, or with `json` the summary."""
    from ...eval.report.render import write_report

    summary, problems = score_run(run_dir, image_set, official_reasons)
    eval_judge.note_problems(problems)
    if json:
        write_report(run_dir)
        print_json({**read_json(run_dir / "summary.json"), "folder": str(run_dir)})
    else:
        print(format_table(summary))
        _write_reports(run_dir)


def _check_new(output: Path, force: bool) -> None:
    """Raise OptionError where results or the summary beside them would be replaced, unless `force`d."""
    for path in (output, output.with_name("summary.json")):
        if os.path.lexists(path) and not force:
            raise exists_error(path)


def _write_reports(run_dir: Path) -> None:
    from ...eval.report.render import write_report

    write_report(run_dir)
    print(run_dir / "report.md")
    print(run_dir / "report.html")
