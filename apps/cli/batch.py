"""`bifrons batch`: paint, answer or locate for any number of rows, on all GPUs of this machine."""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from ...blocks.adapter_choice import parse_adapter
from ...blocks.chat.text_generation import TextGenerationOptions
from ...blocks.checkpoints.hub import find_model_folder, open_model
from ...blocks.checkpoints.quantize import check_kind
from ...blocks.device import resolve_device, resolve_dtype
from ...blocks.errors import OptionError, check_integer, counted, one_line
from ...blocks.image_prompts import MAX_SEED
from ...eval.atomic_io import folder_lock, make_folder
from ...janus.image_generation import ImageGenerationOptions
from ...scale.batch import BatchRun, Plan
from ...scale.local import LocalPool
from ...scale.models import ModelChoice
from ...scale.placement import Placement, default_processes, device_names, weights_bytes
from ...scale.progress import work_progress
from ...scale.rows import Source
from ...scale.tasks import Ask, Locate, Paint, Task
from ..defaults import DEFAULT_GROUNDING_MODEL, DEFAULT_MODEL
from ..files import print_json
from ..notes import note
from ..pipelines import TEXT, family_of
from .inputs import user_path
from .long_work import FAILED, long_work
from .options import given_fields, placement_options

_BATCH, _CPU_BATCH = 64, 16
_THREADS = 1
"""Of torch in each process on a CPU, whatever the number of processes: it may change bits."""


def batch(args: argparse.Namespace) -> int:
    """Do all rows, or those that are missing; 1 if one failed."""
    started = time.monotonic()
    run = _run(args)
    make_folder(run.root)
    with folder_lock(run.root):
        plan = run.begin()
        for row in plan.bad:
            note(one_line(f"row {row.number + 1} can't be done: {row.problem}"))
        workers, restarts = _workers(args, plan), 0
        if plan.todo:
            restarts = _work(args, plan, workers)
        rows, failed = plan.close()
    content = {"folder": str(run.root), "rows": rows, "failed": failed, "workers": workers}
    if args.json:
        print_json({**content, "died": restarts, "seconds": round(time.monotonic() - started, 3)})
    else:
        print(run.root)
    if restarts:
        note(f"{counted(restarts, 'worker')} died and were started again; their rows were done again")
    if failed:
        note(f"{failed:,} of {counted(rows, 'row')} failed; {run.root / 'failed.jsonl'} says why")
    return FAILED if failed else 0


def _work(args: argparse.Namespace, plan: Plan, workers: int) -> int:
    task, total = plan.run.task, plan.rows_to_do
    finished = 0

    def content() -> dict[str, Any]:
        return {"folder": str(plan.run.root), "rows": plan.count, "finished": plan.count - total + finished}

    def done() -> str:
        return f"{content()['finished']:,} of {plan.count:,} rows are done; the same command goes on"

    with long_work(done, content), work_progress(task.doing, total, "row") as advance:

        def count(number: int) -> None:
            nonlocal finished
            finished += number
            advance(number)

        kind = str(resolve_device(args.device))
        pool = LocalPool(task, device_names(kind, workers), _THREADS)
        try:
            return plan.work(pool, count)
        finally:
            pool.close()


def _workers(args: argparse.Namespace, plan: Plan) -> int:
    """How many processes: as many as are asked for or fit, but none without a batch."""
    if args.device_map is not None or args.tensor_parallel not in (None, 1):
        return 1
    if args.workers is not None:
        return max(1, min(args.workers, plan.rows_to_do))
    batches = -(-plan.rows_to_do // plan.run.batch_size)
    fitting = default_processes(args.device, weights_bytes(find_model_folder(args.model)))
    return max(1, min(fitting, batches))


def _run(args: argparse.Namespace) -> BatchRun:
    """The run that is asked for, all checked but the rows. Raises BifronsError."""
    path, root = user_path(args.rows), user_path(args.output)
    check_integer("seed", args.seed, 0, MAX_SEED)
    if args.workers is not None:
        check_integer("workers", args.workers, 1, 1024)
    task = _task(args, path.parent)
    source = Source(path, task.columns, task.check, args.seed)
    on_cpu = resolve_device(args.device).type == "cpu"
    size = (_CPU_BATCH if on_cpu else _BATCH) if args.batch_size is None else args.batch_size
    return BatchRun(root, source, task, args.format, args.shard_size, size)


def _task(args: argparse.Namespace, folder: Path) -> Task:
    model = _model(args)
    if args.task == "paint":
        options = given_fields(args, ImageGenerationOptions)
        ImageGenerationOptions(**options)
        return Paint(model, options)
    if args.task == "ask":
        options = given_fields(args, TextGenerationOptions)
        TextGenerationOptions(**options)
        return Ask(model, folder, args.question, args.exif, options)
    return Locate(model, folder, args.phrase, args.exif)


def _model(args: argparse.Namespace) -> ModelChoice:
    """The model, which must be of a family that does the task. Raises BifronsError."""
    family = family_of(open_model(args.model))
    accepted = {
        "paint": (("Janus",), "paints", f"a Janus model, such as {DEFAULT_MODEL}"),
        "ask": (("Janus", "DeepSeek-VL2"), "reads pictures", f"a model that does, such as {DEFAULT_MODEL}"),
        "locate": (("DeepSeek-VL2",), "points", f"a DeepSeek-VL2 model, such as {DEFAULT_GROUNDING_MODEL}"),
    }
    families, does, advice = accepted[args.task]
    if family not in families:
        raise OptionError(f"{args.model} is a {family} model, none that {does}; accepted: {advice}")
    placement = Placement(**placement_options(args))
    placement.check(args.device, args.workers)
    check_kind(args.quantize)
    dtype = str(resolve_dtype(args.dtype, torch.device(resolve_device(args.device)))).removeprefix("torch.")
    adapters = tuple(str(parse_adapter(text)) for text in args.adapter or ())
    names = {"Janus": "janus", "DeepSeek-VL2": "vl2", TEXT: "text"}
    return ModelChoice(names[family], args.model, dtype, args.quantize, adapters, placement)
