"""`bifrons batch`: paint, answer or locate for any number of rows, on all GPUs of a machine or a cluster."""

import argparse
import time
from dataclasses import dataclass
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
from ...scale.ray_pool import RayPool, cluster_workers, connect
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
    place = _place(args)
    run = _run(args, place)
    make_folder(run.root)
    with folder_lock(run.root):
        plan = run.begin()
        for row in plan.bad:
            note(one_line(f"row {row.number + 1} can't be done: {row.problem}"))
        workers, restarts = _workers(args, place, plan), 0
        if plan.todo:
            restarts = _work(place, plan, workers)
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


@dataclass(frozen=True)
class _Place:
    """Where workers are: on which kind of device, of this machine or of the cluster that `ray` is connected
    to."""

    device: str
    ray: Any = None

    def pool(self, task: Task, workers: int) -> LocalPool | RayPool:
        """Workers for a task."""
        if self.ray is None:
            return LocalPool(task, device_names(self.device, workers), _THREADS)
        return RayPool(self.ray, task, self.device, workers, _THREADS)

    @property
    def type(self) -> torch.device:
        """Its device without a number."""
        return torch.device(self.device)


def _place(args: argparse.Namespace) -> _Place:
    if args.ray is None:
        return _Place(str(resolve_device(args.device)))
    if args.device is not None or args.device_map is not None:
        raise OptionError(
            "a worker on a Ray cluster has a GPU of its own, or a CPU where the cluster has no GPU; accepted "
            "with --ray: neither --device nor --device-map"
        )
    ray = connect(args.ray)
    return _Place(cluster_workers(ray)[0], ray)


def _work(place: _Place, plan: Plan, workers: int) -> int:
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

        pool = place.pool(task, workers)
        try:
            return plan.work(pool, count)
        finally:
            pool.close()


def _workers(args: argparse.Namespace, place: _Place, plan: Plan) -> int:
    """How many processes: as many as are asked for or fit, but none without a batch."""
    if args.device_map is not None or args.tensor_parallel not in (None, 1):
        return 1
    if args.workers is not None:
        return max(1, min(args.workers, plan.rows_to_do))
    batches = -(-plan.rows_to_do // plan.run.batch_size)
    if place.ray is None:
        fitting = default_processes(args.device, weights_bytes(find_model_folder(args.model)))
    else:
        fitting = cluster_workers(place.ray)[1]
    return max(1, min(fitting, batches))


def _run(args: argparse.Namespace, place: _Place) -> BatchRun:
    """The run that is asked for, all checked but the rows. Raises BifronsError."""
    path, root = user_path(args.rows), user_path(args.output)
    check_integer("seed", args.seed, 0, MAX_SEED)
    if args.workers is not None:
        check_integer("workers", args.workers, 1, 1024)
    task = _task(args, place, path.parent)
    source = Source(path, task.columns, task.check, args.seed)
    size = _CPU_BATCH if place.type.type == "cpu" else _BATCH
    size = size if args.batch_size is None else args.batch_size
    return BatchRun(root, source, task, args.format, args.shard_size, size)


def _task(args: argparse.Namespace, place: _Place, folder: Path) -> Task:
    model = _model(args, place)
    if args.task == "paint":
        options = given_fields(args, ImageGenerationOptions)
        ImageGenerationOptions(**options)
        return Paint(model, options)
    if args.task == "ask":
        options = given_fields(args, TextGenerationOptions)
        TextGenerationOptions(**options)
        return Ask(model, folder, args.question, args.exif, options)
    return Locate(model, folder, args.phrase, args.exif)


def _model(args: argparse.Namespace, place: _Place) -> ModelChoice:
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
    on_gpus = place.ray is not None and place.device == "cuda"  # of which this machine may have none
    dtype = str(resolve_dtype(args.dtype or ("bfloat16" if on_gpus else None), place.type))
    adapters = tuple(str(parse_adapter(text)) for text in args.adapter or ())
    names = {"Janus": "janus", "DeepSeek-VL2": "vl2", TEXT: "text"}
    return ModelChoice(
        names[family], args.model, dtype.removeprefix("torch."), args.quantize, adapters, placement
    )
