"""`bifrons train sft`: from rows of data to a fine-tuned model or an adapter, with a report."""

import argparse
import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ...blocks.checkpoints.hub import open_model
from ...blocks.device import resolve_dtype
from ...blocks.errors import OptionError, check_integer, check_number
from ...blocks.progress import progress_bar
from ...learn import validation
from ...learn.adapters import LoraOptions
from ...learn.distributed import agreed, from_first, world
from ...learn.examples import Examples, prepare
from ...learn.replay import paint_replay, read_prompts
from ...learn.rows import PaintRow, Row, new_words
from ...learn.scratch import from_scratch
from ...learn.sft import SftOptions, SftRun, check_share
from ..pipelines import TEXT, as_janus, family_of
from .inputs import user_path
from .options import given_fields
from .train_data import Source, read_source, report_faults
from .train_processes import in_processes, opened_run, processes_to_start
from .train_work import SAMPLES, Training, adapter_settings, check_observation, write_json

if TYPE_CHECKING:
    from ..pipelines import Pipeline

BEFORE = "validation.json"
"""The file with the loss before training on rows kept out."""


def sft(args: argparse.Namespace) -> int:
    """Fine-tune a model; returns the exit status."""
    options, prompts = _check_options(args)
    run_dir, processes = user_path(str(args.output)), processes_to_start(args)
    check_share(options.batch_size, processes)
    if processes > 1:
        return in_processes(args, run_dir, processes)
    return _Sft(args, options, prompts, run_dir).command()


def lora_options(args: argparse.Namespace) -> LoraOptions | None:
    """The adapter to train; None for all weights. Raises `OptionError`."""
    if args.adapter is not None:
        if args.lora is not None or args.lora_alpha is not None or args.image_head or args.lora_experts:
            raise OptionError("--adapter trains an adapter on as it is; accepted: it without --lora")
        return LoraOptions(start=str(user_path(str(args.adapter))))
    if args.lora is not None:
        alpha = 2.0 * args.lora if args.lora_alpha is None else args.lora_alpha
        return LoraOptions(args.lora, alpha, args.image_head, args.lora_experts)
    if args.lora_alpha is not None or args.image_head or args.lora_experts:
        raise OptionError(
            "--lora-alpha, --image-head and --lora-experts go with --lora; without it all weights are trained"
        )
    return None


def _check_options(args: argparse.Namespace) -> tuple[SftOptions, list[str]]:
    """The options of training, and the prompts of replay. Raises `OptionError`."""
    given = given_fields(args, SftOptions) | {"lora": lora_options(args), "steps": args.steps or 1}
    options = SftOptions(**given)
    if args.steps is not None:
        check_integer("steps", args.steps, low=1)
    check_number("epochs", args.epochs, low=1e-9)
    check_number("validation", args.validation, 0.0, 0.9)
    check_observation(args)
    if args.from_scratch and (options.lora is not None or args.eval):
        raise OptionError("--from-scratch trains all of new weights; accepted: it without --lora and --eval")
    if (args.replay is None) != (args.replay_prompts is None):
        raise OptionError("--replay SHARE and --replay-prompts FILE go together")
    if args.replay is None:
        return options, []
    if not 0 < check_number("replay", args.replay) < 1:
        raise OptionError(f"replay is {args.replay:g}; accepted: a share between 0 and 1")
    check_integer("replay_pictures", args.replay_pictures, low=1)
    return options, read_prompts(user_path(str(args.replay_prompts)))


def _settings(args: argparse.Namespace, options: SftOptions, sources: Sequence[Source]) -> dict[str, Any]:
    """What a run that goes on must share with its beginning."""
    settings = {"method": "sft", "model": args.model, "dtype": args.dtype, "new": args.from_scratch}
    settings |= {name: value for name, value in asdict(options).items() if name != "save_every"}
    settings |= adapter_settings(options.lora)
    replay = [args.replay, str(args.replay_prompts), args.replay_pictures] if args.replay else None
    data = [source.summary for source in sources]
    return settings | {"data": data, "validation": args.validation, "replay": replay}


def _check_folder(args: argparse.Namespace) -> None:
    """Raise `BifronsError` for a model that can't be trained so."""
    folder = open_model(args.model)
    if args.from_scratch and family_of(folder) != TEXT:
        raise OptionError(
            f"--from-scratch is for text models, and {args.model} is none; accepted: those of model_type "
            "qwen2, llama, deepseek_v2 or deepseek_v3; docs/training.md shows how others are trained"
        )


class _Sft(Training):
    """The work of one command, once its arguments were checked."""

    def __init__(
        self, args: argparse.Namespace, options: SftOptions, replay_prompts: list[str], run_dir: Path
    ) -> None:
        super().__init__(args, options, run_dir)
        self.replay_prompts, self.sources = replay_prompts, list[Source]()

    def work(self, device: torch.device, stack: ExitStack) -> dict[str, Any]:
        args, options = self.args, self.options
        agreed(lambda: check_share(options.batch_size, world()))
        self.sources = from_first(
            lambda: [read_source(text, args.validation, options.seed) for text in args.data]
        )
        if not args.steps:
            rows = sum(len(source.rows) for source in self.sources)
            steps = max(1, math.ceil(args.epochs * rows / options.batch_size))
            self.options = replace(options, steps=steps)
        agreed(lambda: _check_folder(args))
        stack.enter_context(opened_run(self.run_dir, _settings(args, self.options, self.sources)))
        return self.train_once(lambda: self._train(device))

    def _train(self, device: torch.device) -> dict[str, Any]:
        """Train from the last checkpoint on, and write the result; returns the facts of the report."""
        pipe = agreed(lambda: self._load(device))
        dtype = pipe.dtype
        groups, kept_out, weights = self._prepare(pipe)
        self.teach(pipe, lambda known: new_words((row for group in groups for row in group.rows), known))
        run = agreed(lambda: SftRun(pipe, groups, weights, self.options, self.run_dir))
        step = self.resume(run)
        prompts = agreed(lambda: self._sample_prompts(groups, pipe))
        before = from_first(lambda: self._before(step))
        if before is None:
            before = self.on_first(run, run.updates.dtype, lambda: self._validate(pipe, kept_out))
            from_first(lambda: write_json(self.run_dir / BEFORE, before))
        self.run_steps(run, prompts, lambda: self._paint(pipe, prompts))
        after = self.on_first(run, run.updates.dtype, lambda: self._validate(pipe, kept_out))
        facts = {
            "rows": sum(map(len, groups)),
            "bad_rows": sum(len(source.faults) for source in self.sources),
            "before": before,
            "after": after,
        }
        return self.finish(run, dtype, facts)

    def _load(self, device: torch.device) -> "Pipeline":
        if not self.args.from_scratch:
            return self.load(device)
        pipe = from_scratch(self.args.model, device, self.options.seed)
        return pipe.to(resolve_dtype(self.args.dtype, device))

    def _before(self, step: int) -> dict[str, float] | None:
        """The loss on rows kept out before the first step, if it is known; {} where it can't be any more."""
        path = self.run_dir / BEFORE
        if not path.exists():
            return {} if step else None
        return json.loads(path.read_text(encoding="utf-8"))

    def _prepare(self, pipe: "Pipeline") -> tuple[list[Examples], list[Examples], list[float]]:
        """The examples to train on by source, those kept out, and the sources' weights."""
        groups, kept_out = [], []
        total = sum(len(source.rows) + len(source.kept_out) for source in self.sources)
        with progress_bar(total, "checking rows", " rows") as bar:
            for number, source in enumerate(self.sources):
                cache = self.run_dir / f"codes-{number}.safetensors"
                trained, faults = prepare(pipe, source.rows, cache, bar.update)
                out, more = prepare(pipe, source.kept_out, cache, bar.update)
                source.faults.extend([*faults, *more])
                groups.append(trained)
                kept_out.append(out)
        from_first(lambda: report_faults(self.sources, self.run_dir, self.args.on_bad_rows == "stop"))
        weights = [
            source.weight or float(len(group)) for source, group in zip(self.sources, groups, strict=True)
        ]
        if self.replay_prompts:
            groups.append(self._paint_replay(pipe))
            weights.append(sum(weights) * self.args.replay / (1 - self.args.replay))
        return groups, kept_out, weights

    def _paint_replay(self, pipe: "Pipeline") -> Examples:
        janus, count = as_janus(pipe), self.args.replay_pictures
        with progress_bar(count, "painting replay", " pictures") as bar:
            cache = self.run_dir / "replay.safetensors"

            def paint() -> tuple[Sequence[Row], dict[Path, torch.Tensor]]:
                if janus is None:
                    raise OptionError("--replay needs a model that paints; accepted: Janus models")
                args = (self.replay_prompts, count, self.options.seed, cache, bar.update)
                painted = paint_replay(janus, *args)
                return painted.rows, painted.codes

            return Examples(pipe, *from_first(paint), replayed=True)

    def _sample_prompts(self, groups: Sequence[Examples], pipe: "Pipeline") -> list[str]:
        paints = as_janus(pipe) is not None and self.args.sample_every > 0
        if not paints:
            if self.args.sample:
                raise OptionError("--sample needs a Janus model, which paints")
            return []
        if self.args.sample:
            return list(self.args.sample)
        rows = [row for group in groups[: len(self.sources)] for row in group.rows]
        prompts = dict.fromkeys(row.prompt for row in rows if isinstance(row, PaintRow))
        return list(prompts)[:SAMPLES]

    def _paint(self, pipe: "Pipeline", prompts: list[str]) -> list[Image.Image]:
        """A picture of each prompt, for the page of samples."""
        janus = as_janus(pipe)
        assert janus is not None
        janus.model.eval()
        pictures = janus.generate(prompts, seed=[self.options.seed] * len(prompts), progress=False)
        janus.model.train()
        return pictures

    def _validate(self, pipe: "Pipeline", kept_out: Sequence[Examples]) -> dict[str, float]:
        return validation.validation_loss(pipe, kept_out, self.options.rows_at_once)
