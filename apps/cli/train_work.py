"""What the commands of training share: a run's samples, its result, and its report."""

import argparse
import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import nn

from ...blocks.conversion.adapter import open_adapter
from ...blocks.errors import OptionError, ResourceError, check_integer
from ...blocks.files import atomic_write
from ...blocks.vocabulary import Vocabulary, Work, read_taught
from ...learn import contact_sheet
from ...learn.adapters import LoraOptions
from ...learn.distributed import from_first, gathered, joined, rank
from ...learn.run_folder import cut_log
from ...learn.updates import Updates
from ..files import print_json
from ..notes import note
from ..pipelines import explain_out_of_memory, load_pipeline
from .long_work import long_work
from .train_log import TrainingLog
from .train_processes import goes_on
from .train_report import LESS_MEMORY, compare_suites, report_lines, write_result

if TYPE_CHECKING:
    from ..pipelines import Pipeline

TRAINED = "training.json"
"""The file with what a finished training says of itself."""
SAMPLES = 4
"""Prompts of the data that are sampled if none are named."""
T = TypeVar("T")


class Run(Protocol):
    """A run of training."""

    pipe: Any
    model: nn.Module
    updates: Updates
    adapter: Any
    step: int

    def resume(self) -> int:
        """Load the last checkpoint, if there is one; returns the number of steps that are done."""
        ...

    def run(
        self, callback: Callable[[dict[str, float]], None], pause: Callable[[], None], pause_every: int
    ) -> None:
        """Train to the last step; every process calls `pause` after each `pause_every` steps and the last."""
        ...


def check_observation(args: argparse.Namespace) -> None:
    """Raise `OptionError` for options of samples and evaluations that can't be."""
    check_integer("sample_every", args.sample_every, low=0)
    if args.sample and not args.sample_every:
        raise OptionError("--sample needs --sample-every above 0")
    if args.eval_limit is not None:
        check_integer("eval_limit", args.eval_limit, low=1)
        if not args.eval:
            raise OptionError("--eval-limit goes with --eval SUITE")


def adapter_settings(lora: LoraOptions | None) -> dict[str, Any]:
    """What the settings of a run say of the adapter that it trains on. Raises `BifronsError` for none."""
    return (
        {} if lora is None or lora.start is None else {"adapter": open_adapter(Path(lora.start)).fingerprint}
    )


class Training:
    """The work of one command, once its arguments were checked."""

    def __init__(self, args: argparse.Namespace, options: Any, run_dir: Path) -> None:
        self.args, self.options, self.run_dir = args, options, run_dir
        self.result = run_dir / ("model" if options.lora is None else "adapter")
        self.step: int | None = None

    def work(self, device: torch.device, stack: ExitStack) -> dict[str, Any]:
        """Do what is left of the training, on every process; returns the facts of the report. The run's
        folder is held by `stack`."""
        raise NotImplementedError

    def command(self) -> int:
        """Train and report; returns the exit status."""
        started = time.monotonic()
        with long_work(self._done, self._content), ExitStack() as stack:
            with joined(self.args.device) as device:
                is_first = rank() == 0
                facts = self.work(device, stack)
            if is_first:
                self.report(facts, started)
        return 0

    def _done(self) -> str:
        """What is said where the work is stopped."""
        return "" if self.step is None else goes_on(self.step)

    def _content(self) -> dict[str, Any]:
        """The same for `--json`."""
        return {} if self.step is None else {"folder": str(self.run_dir), "step": self.step}

    def train_once(self, train: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The facts of a training, which is done if its result isn't there."""
        self.step = 0
        if from_first(self.result.exists):
            note(f"{self.result} is there already")
            return from_first(self._facts)
        with explain_out_of_memory("training", lambda: LESS_MEMORY):
            facts = train()
        gc.collect()  # what was trained makes room for evaluations
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return facts

    def _facts(self) -> dict[str, Any]:
        try:
            return json.loads((self.run_dir / TRAINED).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ResourceError(
                f"{self.run_dir / TRAINED} can't be read: {error}; accepted: another folder, or this one "
                f"without {self.result.name}, which is then written again"
            ) from error

    def load(self, device: torch.device) -> "Pipeline":
        """The model to train, with the words that were taught before."""
        pipe = load_pipeline(self.args.model, str(device), self.args.dtype, eager=True)
        if self.args.adapter is not None:
            pipe.taught = read_taught(Path(self.options.lora.start))
        return pipe

    def teach(self, pipe: "Pipeline", new: Callable[[Vocabulary], Mapping[Work, frozenset[str]]]) -> None:
        """Add the words that are `new` to a vocabulary to those that the result was taught."""
        if (known := pipe.vocabulary) is not None:
            found, before = new(known), pipe.taught_words
            pipe.taught = {work: words | found.get(work, frozenset()) for work, words in before.items()}

    def resume(self, run: Run) -> int:
        """Load the run's last checkpoint, and cut its log there; returns how many steps are done."""
        self.step = step = run.resume()
        from_first(lambda: cut_log(self.run_dir, step))
        if step:
            note(f"going on from step {step:,}")
        return step

    def run_steps(self, run: Run, prompts: Sequence[str], make: Callable[[], Sequence[Any]]) -> None:
        """Train to the last step; `make` draws a sample of each of the prompts for the page of samples."""

        def sample() -> None:
            if run.step not in contact_sheet.sampled_steps(self.run_dir):
                contact_sheet.add_samples(self.run_dir, run.step, make(), prompts)

        def pause() -> None:
            if prompts:
                self.on_first(run, run.updates.dtype, sample)

        def observe(figures: dict[str, float]) -> None:
            self.step = int(figures["step"])
            log.add(figures)

        with TrainingLog(self.run_dir, self.options.steps, run.step) as log:
            pause()
            run.run(observe, pause, self.args.sample_every)

    def on_first(self, run: Run, dtype: torch.dtype, work: Callable[[], T]) -> T:
        """What `work` gives on the first process, which has the whole model for it; the others wait."""
        with gathered(run.model, dtype):
            return from_first(work)

    def finish(self, run: Run, dtype: torch.dtype, facts: dict[str, Any]) -> dict[str, Any]:
        """Write the facts of a training and then its result, in `dtype`; returns all facts."""
        facts = {
            "model": self.args.model,
            "folder": str(self.run_dir),
            "result": str(self.result),
            "steps": self.options.steps,
            "trained_parameters": sum(p.numel() for p in run.pipe.model.parameters() if p.requires_grad),
        } | facts
        from_first(lambda: write_json(self.run_dir / TRAINED, facts))
        self.on_first(run, dtype, lambda: write_result(run.pipe, run.adapter, self.result, dtype))
        return facts

    def report(self, facts: dict[str, Any], started: float) -> None:
        """Evaluate what was trained, and write and print the report."""
        evaluations = compare_suites(self.run_dir, self.args, self.result)
        facts |= {"evaluations": evaluations, "seconds": round(time.monotonic() - started, 1)}
        with atomic_write(self.run_dir / "report.md") as stream:
            stream.write("\n".join(report_lines(facts)).encode())
        if self.args.json:
            print_json(facts)
        else:
            print("\n".join(report_lines(facts)[1:]))
            print(self.result)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_write(path) as stream:
        stream.write(json.dumps(content, indent=2).encode() + b"\n")
