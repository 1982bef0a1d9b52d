"""`bifrons train grpo`: from prompts and a reward to a trained model or an adapter."""

import argparse
import hashlib
import time
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from ...blocks.checkpoints.hub import open_model
from ...blocks.errors import OptionError
from ...blocks.files import atomic_write
from ...learn.curves import curves, read_log
from ...learn.distributed import agreed, from_first, gathered, joined, rank
from ...learn.grpo import GrpoOptions, GrpoRun
from ...learn.prompts import check_prompts, read_prompts
from ...learn.reward import Prompt, Reward
from ...learn.rewards.choose import RewardOptions, WeightedRewards, make_reward
from ...learn.rows import Fault
from ...learn.run_folder import LOG, cut_log
from ..files import print_json
from ..notes import note
from ..pipelines import as_janus, explain_out_of_memory, load_pipeline
from .inputs import user_path
from .long_work import long_work
from .options import given_fields
from .train_data import Source, report_faults
from .train_log import TrainingLog
from .train_processes import goes_on, in_processes, opened_run, processes_to_start
from .train_report import LESS_MEMORY, write_result
from .train_sft import lora_options

PANELS = {"reward": "mean reward", "kl": "KL divergence from the model before training, per token"}
"""What RUN/curves.svg shows."""


def grpo(args: argparse.Namespace) -> int:
    """Train a model by rewards; returns the exit status."""
    started = time.monotonic()
    options = GrpoOptions(**{**given_fields(args, GrpoOptions), "lora": lora_options(args)})
    run_dir, processes = user_path(str(args.output)), processes_to_start(args)
    if processes > 1:
        return in_processes(args, run_dir, processes)
    training = _Training(args, options, run_dir)
    with long_work(training.done, training.content), ExitStack() as stack:
        with joined(args.device) as device:
            is_first = rank() == 0
            training.work(device, stack)
        if is_first:
            training.report(started)
    return 0


def _reward(args: argparse.Namespace) -> WeightedRewards:
    given = {field.name: getattr(args, f"reward_{field.name}") for field in fields(RewardOptions)}
    options = RewardOptions(**{name: value for name, value in given.items() if value is not None})
    rewards: list[Reward] = [make_reward(name, options) for name in args.reward]
    return WeightedRewards(rewards, args.reward_weight or [1.0] * len(rewards))


def _read(path: Path) -> tuple[list[tuple[str, Prompt]], list[Fault]]:
    prompts, faults = read_prompts(path)
    if not prompts:
        raise OptionError(f"no prompt of {path} can be used: {faults[0] if faults else 'it is empty'}")
    return prompts, faults


def _settings(
    args: argparse.Namespace, options: GrpoOptions, prompts: list[tuple[str, Prompt]]
) -> dict[str, Any]:
    """What a run that goes on must share with its beginning."""
    settings = {"method": "grpo", "model": args.model, "dtype": args.dtype}
    settings |= {
        name: value for name, value in asdict(options).items() if name not in ("save_every", "steps")
    }
    digest = hashlib.sha256(repr(prompts).encode()).hexdigest()
    return settings | {"prompts": digest, "reward": args.reward, "reward_weight": args.reward_weight}


class _Training:
    """The work of one command, once its arguments were checked."""

    def __init__(self, args: argparse.Namespace, options: GrpoOptions, run_dir: Path) -> None:
        self.args, self.options, self.run_dir = args, options, run_dir
        self.result = run_dir / ("model" if options.lora is None else "adapter")
        self.step: int | None = None

    def done(self) -> str:
        """What is said where the work is stopped."""
        return "" if self.step is None else goes_on(self.step)

    def content(self) -> dict[str, Any]:
        """The same for `--json`."""
        return {} if self.step is None else {"folder": str(self.run_dir), "step": self.step}

    def work(self, device: torch.device, stack: ExitStack) -> None:
        """Do what is left of the training, on every process. The run's folder is held by `stack`."""
        args, path = self.args, user_path(str(self.args.prompts))
        reward = agreed(lambda: _reward(args))
        prompts, faults = from_first(lambda: _read(path))
        agreed(lambda: open_model(args.model))
        stack.enter_context(opened_run(self.run_dir, _settings(args, self.options, prompts)))
        self.step = 0
        if from_first(self.result.exists):
            note(f"{self.result} is there already")
            return
        with explain_out_of_memory("training", lambda: LESS_MEMORY):
            self._train(device, reward, prompts, faults)

    def report(self, started: float) -> None:
        """Write and print what the log says."""
        log = read_log(self.run_dir / LOG)
        with atomic_write(self.run_dir / "curves.svg") as stream:
            stream.write(curves(log, PANELS).encode())
        facts = {"folder": str(self.run_dir), "result": str(self.result), "steps": len(log)}
        facts |= {"seconds": round(time.monotonic() - started, 1), **_summary(log)}
        if self.args.json:
            print_json(facts)
        else:
            first, last, skipped = (facts[name] for name in ("reward_first", "reward_last", "skipped_groups"))
            print(f"reward {first:.4f} in the first tenth of the steps, {last:.4f} in the last")
            print(f"{skipped} groups without a difference, from which nothing is learned")
            print(self.result)

    def _train(
        self,
        device: torch.device,
        reward: WeightedRewards,
        prompts: list[tuple[str, Prompt]],
        faults: list[Fault],
    ) -> None:
        pipe = agreed(lambda: load_pipeline(self.args.model, str(device), self.args.dtype, eager=True))
        dtype = pipe.dtype

        def check() -> list[Prompt]:
            if "prompt" in prompts[0][1] and as_janus(pipe) is None:
                raise OptionError(
                    "prompts to paint need a Janus model; accepted for others: messages to answer"
                )
            good, more = check_prompts(pipe, prompts, self.options.max_new_tokens, reward.check)
            data = Source(self.args.prompts, None, [], [], [*faults, *more])
            report_faults([data], self.run_dir, self.args.on_bad_rows == "stop")
            if not good:
                raise OptionError(f"no prompt of {self.args.prompts} can be used: {data.faults[0]}")
            return good

        good = from_first(check)
        run = agreed(lambda: GrpoRun(pipe, good, reward, self.options, self.run_dir))
        self.step = step = run.resume()
        from_first(lambda: cut_log(self.run_dir, step))
        if self.step:
            note(f"going on from step {self.step:,}")
        with TrainingLog(self.run_dir, self.options.steps, self.step) as log:
            run.run(lambda figures: self._observe(log, figures))
        with gathered(run.model, dtype):
            from_first(lambda: write_result(pipe, run.adapter, self.result, dtype))

    def _observe(self, log: TrainingLog, figures: dict[str, float]) -> None:
        self.step = int(figures["step"])
        log.add(figures)


def _summary(log: list[dict[str, float]]) -> dict[str, float]:
    tenth = max(1, len(log) // 10)
    first, last = ([one["reward"] for one in part] for part in (log[:tenth], log[-tenth:]))
    return {
        "reward_first": sum(first) / tenth,
        "reward_last": sum(last) / tenth,
        "kl": log[-1]["kl"],
        "skipped_groups": int(sum(one["skipped_groups"] for one in log)),
    }
