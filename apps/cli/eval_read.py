"""`bifrons eval read`: benchmarks of reading pictures."""

import argparse
from collections.abc import Mapping
from typing import Any

from ...blocks.adapter_choice import parse_adapter
from ...blocks.checkpoints.hub import open_model
from ...blocks.errors import OptionError, counted, one_line
from ...eval.atomic_io import folder_lock, make_folder
from ...eval.judges.judge import JudgeChoice
from ...eval.read.run import Reading, read_benchmark
from ...scale.models import FAMILIES
from ...scale.placement import Placement
from ..files import print_json
from ..pipelines import TEXT, family_of
from .options import placement_options

_ENDPOINTS = ("http://", "https://")


def _reader(model: str) -> str:
    """The model as `JudgeChoice` names it, with the family before its name."""
    if model.startswith((*_ENDPOINTS, *(f"{family}:" for family in FAMILIES))):
        return model
    families = {"Janus": "janus", "DeepSeek-VL2": "vl2", TEXT: "text"}
    return f"{families[family_of(open_model(model))]}:{model}"


def model_choice(args: argparse.Namespace) -> JudgeChoice:
    """The model that answers: one in process, or behind an endpoint. Raises `OptionError`."""
    if args.revision is not None and args.model.startswith(_ENDPOINTS):
        raise OptionError("--revision is for a hub's model in process; an endpoint has loaded its own")
    given = {
        "model": args.endpoint_model,
        "version": args.endpoint_version,
        "options": args.endpoint_options,
        "key": args.endpoint_key,
        "dtype": args.dtype,
        "quantize": args.quantize,
        "adapters": tuple(str(parse_adapter(text)) for text in args.adapter or ()),
        "placement": Placement(**placement_options(args)),
        "workers": args.workers,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return JudgeChoice(_reader(args.model), **given)


def read(args: argparse.Namespace) -> int:
    """Run a benchmark, or go on, and print its scores."""
    choice = model_choice(args)
    reading = Reading(args.benchmark, args.path, choice, args.images, args.prompt, args.limit)
    make_folder(args.run_dir)
    with folder_lock(args.run_dir):
        content = read_benchmark(args.run_dir, reading, args.device, args.processes, args.threads)
    if args.json:
        print_json(content)
        return 0
    print_scores(content, "example")
    return 0


def print_scores(content: Mapping[str, Any], unit: str) -> None:
    """Print the scores with their intervals, and what was not scored."""
    for name, group in content["groups"].items():
        low, high = group["interval"]
        print(f"{name}: {group['score']:.2%} ({low:.1%} to {high:.1%}), {counted(group['items'], unit)}")
    for name, value in content["metrics"].items():
        print(f"{name}: {value:.4g}")
    for problem in content["not_scored"]:
        number = next(value for name, value in problem.items() if name != "reason")
        print(one_line(f"not scored: {unit} {number}: {problem['reason']}"))
