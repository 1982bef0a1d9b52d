"""`bifrons eval`: the stages of an evaluation."""

import argparse
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ...blocks.checkpoints.hub import find_model_folder
from ...blocks.errors import OptionError
from ...eval.geneval.compare import compare as compare_results
from ...eval.geneval.compare import format_comparison, read_results
from ...eval.geneval.scoring import format_table
from ...eval.geneval.suites import geneval_prompts
from ...eval.runs.detect import DetectorChoice, collect, detect_objects, images_of_run
from ...eval.runs.generate import generate_images
from ...eval.runs.import_images import ImageSet, is_small_world, record_import, scan_folder
from ...eval.runs.recipe import Recipe
from ...eval.runs.run_dir import RunDir
from ...eval.runs.score import score_file, summary_json
from ...eval.runs.stages import load_images, prepare, score_run
from ...eval.runs.workers import Ranks, join_ranks
from ..files import print_json
from ..pipelines import label


def evaluate(args: argparse.Namespace) -> int:
    """Run the stage that was named; the status as `main` has it."""
    stages = {
        "run": run,
        "generate": generate,
        "detect": detect,
        "score": score,
        "report": report,
        "import": import_pictures,
        "compare": compare,
        "selftest": selftest,
    }
    return stages[args.stage](args)


def run(args: argparse.Namespace) -> int:
    """All stages: generate what is missing, detect, score and report."""
    with join_ranks() as ranks:
        opened = _open(args, ranks)
        choice = _choice(args, opened.recipe.suite == "shapes")
        _check(choice, args.device, ranks)
        _paint(opened, args, ranks)
        image_set = ImageSet(images_of_run(opened))
        detect_objects(
            args.run_dir, image_set.images, choice, args.device, args.processes, args.threads, ranks
        )
        return _finish(args.run_dir, image_set) if ranks.rank == 0 else 0


def generate(args: argparse.Namespace) -> int:
    """Generate the missing images of a run."""
    with join_ranks(args.rank, args.world_size) as ranks:
        opened = _open(args, ranks)
        _paint(opened, args, ranks)
        if ranks.rank == 0:
            left = len(opened.unfinished(opened.image_keys()))
            print(f"{opened.images_dir}: {len(opened.image_keys()) - left} pictures, {left} to be painted")
    return 0


def detect(args: argparse.Namespace) -> int:
    """Detect objects in the images of a run."""
    with join_ranks(args.rank, args.world_size) as ranks:
        image_set = load_images(args.run_dir)
        choice = _choice(args, is_small_world(image_set))
        _check(choice, args.device, ranks)
        images = image_set.images
        detect_objects(args.run_dir, images, choice, args.device, args.processes, args.threads, ranks)
        if ranks.rank == 0 and (ranks.linked or ranks.size == 1):
            collect(args.run_dir, images)
            print(args.run_dir / "detections.jsonl")
    return 0


def score(args: argparse.Namespace) -> int:
    """Score the detections of a run or of a file."""
    if args.detections is None:
        if args.output is not None:
            raise OptionError("--output goes with --detections; a run's results go into its folder")
        summary, problems = score_run(args.run_dir)
        _tell(problems)
    else:
        if args.output is None:
            raise OptionError("--detections needs --output FILE, the results.jsonl to write")
        summary = score_file(args.detections, args.output)
    if args.json:
        print_json(summary_json(summary))
    else:
        print(format_table(summary))
    return 0


def report(args: argparse.Namespace) -> int:
    """Write the reports of a scored run."""
    _report(args.run_dir)
    return 0


def import_pictures(args: argparse.Namespace) -> int:
    """Evaluate images that were generated elsewhere."""
    rows = geneval_prompts(args.prompts) if args.prompts else None
    image_set = scan_folder(args.source, args.images_per_prompt, rows)
    choice = _choice(args, is_small_world(image_set))
    _check(choice, args.device, Ranks())
    record_import(args.run_dir, args.source, args.images_per_prompt, args.prompts)
    detect_objects(args.run_dir, image_set.images, choice, args.device, args.processes, args.threads)
    return _finish(args.run_dir, image_set)


def compare(args: argparse.Namespace) -> int:
    """Print the differences of two evaluations."""
    found = compare_results(read_results(args.a), read_results(args.b))
    if args.json:
        kinds = {
            tag: {**asdict(kind), "interval": list(kind.interval), "difference": kind.value}
            for tag, kind in found.kinds.items()
        }
        print_json({**asdict(found), "kinds": kinds})
    else:
        print(format_comparison(found, str(args.a), str(args.b)))
    return 0


def selftest(args: argparse.Namespace) -> int:
    """0 when every verdict was as planted, else 1."""
    from ...eval.geneval.selftest import format_selftest, run_selftest

    results, passed = run_selftest(args.cases, args.seed)
    print(format_selftest(results))
    return 0 if passed else 1


def _open(args: argparse.Namespace, ranks: Ranks) -> RunDir:
    """The run of these arguments. With linked ranks, rank 0 makes the folder before the others open it."""
    given: dict[str, Any] = {f.name: getattr(args, f.name) for f in fields(Recipe) if f.name in args}
    if ranks.rank:
        ranks.wait()
    opened = prepare(args.run_dir, given, args.device, args.prompts)
    if not ranks.rank:
        ranks.wait()
        if note := label(find_model_folder(opened.recipe.model)):
            print(note, file=sys.stderr)
    return opened


def _paint(opened: RunDir, args: argparse.Namespace, ranks: Ranks) -> None:
    recipe = opened.recipe
    if ranks.rank == 0:
        total = len(opened.image_keys())
        print(
            f"{recipe.model} on {recipe.suite}: {total} pictures, guidance {recipe.guidance_scale:g}, "
            f"temperature {recipe.temperature:g}, top-k {recipe.top_k}, top-p {recipe.top_p:g}, "
            f"seed {recipe.seed} ({recipe.seed_policy}), {recipe.dtype}",
            file=sys.stderr,
        )
    generate_images(opened, args.device, args.processes, args.threads, ranks)


def _choice(args: argparse.Namespace, shapes: bool) -> DetectorChoice:
    """The detector that was named, else the one that the sentences are made for; the choice is printed."""
    kind = args.detector or ("shapes" if shapes else "mask2former-official")
    return DetectorChoice(kind, args.detector_weights, args.clip_weights)


def _check(choice: DetectorChoice, device: str | None, ranks: Ranks) -> None:
    """Load the detector, so that an unusable one is reported before hours of image generation."""
    detector = choice.make(device)
    if ranks.rank == 0:
        note = "" if detector.comparable else "; its scores are not comparable with GenEval's"
        print(f"detector: {detector.name}{note}", file=sys.stderr)


def _finish(run_dir: Path, image_set: ImageSet) -> int:
    summary, problems = score_run(run_dir, image_set)
    _tell(problems)
    print(format_table(summary))
    _report(run_dir)
    return 0


def _report(run_dir: Path) -> None:
    from ...eval.report.render import write_report

    write_report(run_dir)
    print(run_dir / "report.md")
    print(run_dir / "report.html")


def _tell(problems: list[dict[str, str]]) -> None:
    for item in problems:
        print(f"not scored: {item['filename']}: {item['reason']}", file=sys.stderr)
