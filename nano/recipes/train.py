"""Train the embedded models, part by part: `python -m bifrons.nano.recipes.train --help`.

A part reads what `janus_data` or `vl2_data` and the parts before it have written to the folder, is trained by
`bifrons.learn.pretraining`, and writes its result there. Started again, it goes on where it was stopped. With
`torchrun --nproc-per-node N -m bifrons.nano.recipes.train PART`, N GPUs draw N times the rows a step.
"""

import argparse
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...blocks.errors import OptionError
from ...janus.config import read_config
from ...janus.pipeline import JanusPipeline
from ...learn.distributed import joined, rank
from ...learn.image_tokenizer import TokenizerObjective, psnr
from ...learn.objectives import ModelObjective
from ...learn.pretraining import PretrainingOptions
from ...learn.run_folder import open_run
from ...learn.scratch import from_scratch
from ...tokenizers.vq.model import VQModel
from ...vl2.pipeline import VL2Pipeline
from ..world.renderer import pack, render_packed
from .janus import janus_tasks
from .pictures import SIDE, ScenePool, draw_pixels, sample_scenes
from .things_parts import MODEL, TOWER, VQ, Made, run_part, write_weights
from .vision import VisionObjective
from .vl2 import vl2_tasks


@dataclass(frozen=True)
class Part:
    """How a part of a model is trained: its folder, the rows of a batch by task, scenes to draw from."""

    folder: str
    rows: tuple[int, ...]
    options: PretrainingOptions
    scenes: int = 0
    balance: float = 0.0
    nucleus: float | None = None


JANUS, VL2 = "runs/janus-nano", "runs/vl2-nano"
PARTS = {
    "janus-vq": Part(
        JANUS, (64,), PretrainingOptions(1e-3, seconds=150, optimizer="adamw", average=0.998), scenes=60_000
    ),
    "janus-vision": Part(JANUS, (256,), PretrainingOptions(3e-3, seconds=60), scenes=50_000),
    "janus": Part(JANUS, (176, 80), PretrainingOptions(3.5e-3, seconds=480)),
    "janus-nucleus": Part(
        "runs/janus-nano-2", (160, 16), PretrainingOptions(1e-3, seconds=120), nucleus=0.95
    ),
    "vl2-vision": Part(VL2, (256,), PretrainingOptions(3e-3, seconds=60), scenes=50_000),
    "vl2": Part(VL2, (112, 48), PretrainingOptions(3e-3, seconds=400), balance=0.02),
}
"""The parts in the order of training; `janus-nucleus` is janus-nano once more, from its own distribution."""


def make(name: str, part: Part, folder: Path, start: Path | None, device: torch.device) -> Made:
    """What a part trains, beginning with the model of the folder `start`, if it is given."""
    if name == "janus-vq":
        return _make_tokenizer(part, folder, device)
    if name.endswith("vision"):
        pool = ScenePool(part.options.seed, part.scenes, device)
        objective = VisionObjective(name.removesuffix("-vision"), pool, part.rows[0])
        return objective, lambda: write_weights(objective.labeller.vision, folder / TOWER, torch.float32)
    return _make_model(name, part, folder, start, device)


def _make_tokenizer(part: Part, folder: Path, device: torch.device) -> Made:
    torch.backends.cudnn.benchmark = True
    pool = ScenePool(part.options.seed, part.scenes, device)
    model = VQModel(read_config(folder)[0].vq).to(device)

    def write() -> None:
        write_weights(model, folder / VQ, torch.bfloat16)
        images = render_packed(pack(sample_scenes(10**6, 256)), SIDE, device)
        values = psnr(model.to(torch.bfloat16).float(), images)
        print(f"PSNR on 256 fresh scenes: mean {values.mean():.2f} dB, least {values.min():.2f} dB")

    return TokenizerObjective(model, lambda: draw_pixels(pool.draw(part.rows[0]))), write


def _make_model(name: str, part: Part, folder: Path, start: Path | None, device: torch.device) -> Made:
    is_janus = name.startswith("janus")
    if start is not None:
        load = JanusPipeline.from_pretrained if is_janus else VL2Pipeline.from_pretrained
        pipe: Any = load(start, device, "float32", capture=False)
    else:
        tower = {"vision_model.vision_tower" if is_janus else "vision": folder / TOWER}
        vq = {"gen_vision_model": folder / VQ} if is_janus else {}
        pipe = from_scratch(folder, device, part.options.seed, tower | vq)
    tasks = (janus_tasks if is_janus else vl2_tasks)(pipe.model, folder, *part.rows)
    objective = ModelObjective(pipe.model, tasks, balance=part.balance, nucleus=part.nucleus)
    return objective, lambda: pipe.to(torch.bfloat16).save_pretrained(folder / MODEL)


def train(name: str, part: Part, folder: Path, start: Path | None, device: torch.device) -> None:
    """Train a part to its end, and write its result. Raises `OptionError` for a result that is there."""
    if name == "janus-nucleus" and start is None:
        raise OptionError("janus-nucleus trains a model on; name its folder by --start")
    if (folder / MODEL).exists() and not name.endswith(("vq", "vision")):
        raise OptionError(f"{folder / MODEL} is there already")
    began, run_folder = time.monotonic(), folder / "runs" / name
    if rank() == 0:
        settings = {"part": name, "rows": part.rows, "start": str(start), **asdict(part.options)}
        open_run(run_folder, {k: v for k, v in settings.items() if k not in ("wall", "save_seconds")})
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(part.options.seed)
    made = make(name, part, folder, start, device)
    steps = run_part(made, part.options, run_folder, began)
    print(f"{time.monotonic() - began:.0f}s: {steps:,} steps done", flush=True)


def main() -> None:
    """Command line: train a part."""
    parser = argparse.ArgumentParser(description="Train a part of an embedded model on the small world.")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--folder", type=Path, help="inputs, run and result (default: the part's own)")
    parser.add_argument("--start", type=Path, help="a model folder with initial weights")
    parser.add_argument("--seconds", type=float, help="training time, over all restarts")
    parser.add_argument("--wall", type=float, help="limit on the run time in seconds; shortens the schedule")
    parser.add_argument("--learning-rate", type=float, help="its peak")
    parser.add_argument("--rows", type=int, nargs="+", help="rows of a batch by task")
    parser.add_argument("--scenes", type=int, help="scenes to draw from, of parts that draw pictures")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", help="cpu or cuda (default: the best available)")
    args = parser.parse_args()
    part = PARTS[args.part]
    given = {name: getattr(args, name) for name in ("seconds", "wall", "learning_rate", "seed")}
    options = replace(part.options, **{name: value for name, value in given.items() if value is not None})
    part = replace(
        part, options=options, rows=tuple(args.rows or part.rows), scenes=args.scenes or part.scenes
    )
    with joined(args.device) as device:
        train(args.part, part, args.folder or Path(part.folder), args.start, device)


if __name__ == "__main__":
    main()
