"""Train the models of the world of things: `python -m bifrons.nano.recipes.train PART`.

A part reads what the parts before it have written to the folder, is trained by `bifrons.learn.pretraining`,
and writes its result there. Started again, it goes on where it was stopped. With `torchrun --nproc-per-node N
-m bifrons.nano.recipes.train PART`, N GPUs draw N times the rows a step.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ...blocks.device import resolve_device
from ...learn.distributed import joined, rank
from ...learn.pretraining import PretrainingOptions
from ...learn.run_folder import open_run
from .detector import make_detector
from .janus import make_model as make_janus
from .janus import make_tokenizer
from .janus_data import write_examples
from .parts import Job, Made, run_part
from .vision import make_janus_vision
from .vl2 import make_model as make_vl2
from .vl2 import make_vision as make_vl2_vision


@dataclass(frozen=True)
class Part:
    """How a part is trained: what makes it, its folder, the rows of a batch by task, and how many examples of
    each kind it draws from. `exact` computes float32 products in full, not in TF32."""

    make: Callable[[Job], Made]
    folder: str
    rows: tuple[int, ...]
    examples: tuple[int, ...]
    options: PretrainingOptions
    exact: bool = False


JANUS, VL2, DETECTOR = "runs/janus-nano", "runs/vl2-nano", "runs/world-detector"
FREE = ("wall", "save_seconds", "capture", "compile")
"""Settings with which a run may go on that was begun with others."""
RESERVE = 15.0
"""Seconds of `--wall` that are left for writing the result."""
PARTS = {
    "vq": Part(
        make_tokenizer,
        JANUS,
        rows=(64,),
        examples=(60_000,),
        options=PretrainingOptions(1e-3, seconds=160, optimizer="adamw", average=0.998),
        exact=True,
    ),
    "janus-vision": Part(
        make_janus_vision,
        JANUS,
        rows=(256,),
        examples=(60_000,),
        options=PretrainingOptions(3e-3, seconds=60),
    ),
    "janus": Part(
        make_janus,
        JANUS,
        rows=(192, 48, 96),
        examples=(),
        options=PretrainingOptions(3e-3, seconds=700),
    ),
    "vl2-vision": Part(
        make_vl2_vision,
        VL2,
        rows=(96,),
        examples=(2_500, 80_000),
        options=PretrainingOptions(3e-3, seconds=80),
    ),
    "vl2": Part(
        make_vl2,
        VL2,
        rows=(32,),
        examples=(2_500, 320_000),
        options=PretrainingOptions(2e-3, seconds=900),
    ),
    "detector": Part(
        make_detector,
        DETECTOR,
        rows=(96,),
        examples=(150_000,),
        options=PretrainingOptions(2e-3, seconds=150, optimizer="adamw"),
    ),
}
"""The parts in the order of training."""
DATA = {"janus-data": (write_examples, JANUS, (400_000, 80_000, 200_000))}
"""Parts that only write examples: how, where, and how many of each kind."""


def train(name: str, part: Part, job: Job, began: float) -> None:
    """Train a part to its end, and write its result. `began`: when the process began, on the monotonic
    clock."""
    run_folder, options = job.folder / "runs" / name, part.options
    settings = {"part": name, "rows": job.rows, "examples": job.examples, **asdict(options)}
    if rank() == 0:
        open_run(run_folder, {name: value for name, value in settings.items() if name not in FREE})
    torch.set_float32_matmul_precision("highest" if part.exact else "high")
    torch.manual_seed(options.seed)
    made = part.make(job)
    print(f"{time.monotonic() - began:.0f}s: ready to train", flush=True)
    if options.wall is not None:
        options = replace(options, wall=max(1.0, options.wall - (time.monotonic() - began) - RESERVE))
    steps = run_part(made, options, run_folder, began)
    memory = torch.cuda.max_memory_allocated() / 2**30 if job.device.type == "cuda" else 0
    print(f"{time.monotonic() - began:.0f}s: {steps:,} steps done, {memory:.1f} GiB at most", flush=True)


def main() -> None:
    """Command line: train a part."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description="Train a part of a model of the world of things.")
    parser.add_argument("part", choices=(*PARTS, *DATA))
    parser.add_argument("--folder", type=Path, help="inputs, run and result (default: the part's own)")
    parser.add_argument("--seconds", type=float, help="training time, over all restarts")
    parser.add_argument("--steps", type=int, help="steps, in place of a time")
    parser.add_argument("--wall", type=float, help="limit on the run time in seconds; shortens the schedule")
    parser.add_argument("--learning-rate", type=float, help="its peak")
    parser.add_argument("--rows", type=int, nargs="+", help="rows of a batch by task")
    parser.add_argument("--examples", type=int, nargs="+", help="pictures or rows to draw from, by kind")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that render")
    parser.add_argument("--start", type=Path, help="to go on from: weights (vq), or a model folder")
    parser.add_argument("--device", help="cpu or cuda (default: the best available)")
    parser.add_argument("--no-capture", action="store_true", help="without CUDA graphs")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that render
    if args.part in DATA:
        write, folder, examples = DATA[args.part]
        device = resolve_device(args.device)
        folder, examples = args.folder or Path(folder), tuple(args.examples or examples)
        write(Job(folder, (), examples, args.seed or 0, args.workers, device))
        print(f"{time.monotonic() - began:.0f}s: done")
        return
    if args.start and args.part not in ("vq", "janus", "vl2"):
        parser.error("--start is accepted for the parts vq, janus and vl2")
    part = PARTS[args.part]
    given = {name: getattr(args, name) for name in ("seconds", "wall", "learning_rate", "seed")}
    given |= {"steps": args.steps, "seconds": None} if args.steps else {}
    chosen = {k: v for k, v in given.items() if v is not None or (k == "seconds" and args.steps)}
    chosen |= {"capture": not args.no_capture, "compile": not args.no_compile}
    part = replace(part, options=replace(part.options, **chosen))
    rows, examples = tuple(args.rows or part.rows), tuple(args.examples or part.examples)
    folder = args.folder or Path(part.folder)
    with joined(args.device) as device:
        job = Job(folder, rows, examples, part.options.seed, args.workers, device, args.start)
        train(args.part, part, job, began)


if __name__ == "__main__":
    main()
