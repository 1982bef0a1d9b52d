"""`bifrons train grpo`: from prompts and a reward to a trained model or an adapter."""

import argparse
import hashlib
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ...blocks.checkpoints.hub import open_model
from ...blocks.errors import OptionError
from ...blocks.files import atomic_write
from ...eval.atomic_io import disk_errors, folder_lock
from ...learn.curves import curves, read_log
from ...learn.grpo import GrpoOptions, GrpoRun
from ...learn.prompts import check_prompts, read_prompts
from ...learn.reward import Prompt, Reward
from ...learn.rewards.choose import RewardOptions, WeightedRewards, make_reward
from ...learn.rows import Fault
from ...learn.run_folder import LOG, cut_log, open_run
from ..files import print_json
from ..notes import note
from ..pipelines import as_janus, explain_out_of_memory, load_pipeline
from .inputs import user_path
from .long_work import long_work
from .options import given_fields
from .train_data import Source, report_faults
from .train_log import TrainingLog
from .train_sft import LESS_MEMORY, lora_options, write_result

PANELS = {"reward": "mean reward", "kl": "KL divergence from the model before training, per token"}
"""What RUN/curves.svg shows."""


def grpo(args: argparse.Namespace) -> int:
    """Train a model by rewards; returns the exit status."""
    started = time.monotonic()
    options = GrpoOptions(**{**given_fields(args, GrpoOptions), "lora": lora_options(args)})
    reward = _reward(args)
    path = user_path(str(args.prompts))
    prompts, faults = read_prompts(path)
    if not prompts:
        raise OptionError(f"no prompt of {path} can be used: {faults[0] if faults else 'it is empty'}")
    open_model(args.model)
    run_dir = user_path(str(args.output))
    with disk_errors(f"work in {run_dir}"):
        open_run(run_dir, _settings(args, options, prompts))
        with folder_lock(run_dir):
            return _Training(args, options, reward, run_dir).work(prompts, faults, started)


def _reward(args: argparse.Namespace) -> WeightedRewards:
    given = {field.name: getattr(args, f"reward_{field.name}") for field in fields(RewardOptions)}
    options = RewardOptions(**{name: value for name, value in given.items() if value is not None})
    rewards: list[Reward] = [make_reward(name, options) for name in args.reward]
    return WeightedRewards(rewards, args.reward_weight or [1.0] * len(rewards))


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

    def __init__(
        self, args: argparse.Namespace, options: GrpoOptions, reward: WeightedRewards, run_dir: Path
    ) -> None:
        self.args, self.options, self.reward, self.run_dir = args, options, reward, run_dir
        self.result = run_dir / ("model" if options.lora is None else "adapter")
        self.step = 0

    def work(self, prompts: list[tuple[str, Prompt]], faults: list[Fault], started: float) -> int:
        """Do what is left of the run; returns the exit status."""
        facts: dict[str, Any] = {"folder": str(self.run_dir), "result": str(self.result)}
        with long_work(self._done, lambda: {"folder": str(self.run_dir), "step": self.step}):
            if self.result.exists():
                note(f"{self.result} is there already")
            else:
                with explain_out_of_memory("training", lambda: LESS_MEMORY):
                    self._train(prompts, faults)
        log = read_log(self.run_dir / LOG)
        with atomic_write(self.run_dir / "curves.svg") as stream:
            stream.write(curves(log, PANELS).encode())
        facts |= {"steps": len(log), "seconds": round(time.monotonic() - started, 1), **_summary(log)}
        if self.args.json:
            print_json(facts)
        else:
            first, last, skipped = (facts[name] for name in ("reward_first", "reward_last", "skipped_groups"))
            print(f"reward {first:.4f} in the first tenth of the steps, {last:.4f} in the last")
            print(f"{skipped} groups without a difference, from which nothing is learned")
            print(self.result)
        return 0

    def _done(self) -> str:
        return f"the same command goes on from the last checkpoint (step {self.step:,} was reached)"

    def _train(self, prompts: list[tuple[str, Prompt]], faults: list[Fault]) -> None:
        pipe = load_pipeline(self.args.model, self.args.device, self.args.dtype, eager=True)
        if "prompt" in prompts[0][1] and as_janus(pipe) is None:
            raise OptionError("prompts to paint need a Janus model; accepted for others: messages to answer")
        dtype = pipe.dtype
        good, more = check_prompts(pipe, prompts, self.options.max_new_tokens, self.reward.check)
        data = Source(self.args.prompts, None, [], [], [*faults, *more])
        report_faults([data], self.run_dir, self.args.on_bad_rows == "stop")
        if not good:
            raise OptionError(f"no prompt of {self.args.prompts} can be used: {data.faults[0]}")
        run = GrpoRun(pipe, good, self.reward, self.options, self.run_dir)
        self.step = run.resume()
        cut_log(self.run_dir, self.step)
        if self.step:
            note(f"going on from step {self.step:,}")
        with TrainingLog(self.run_dir, self.options.steps, self.step) as log:
            run.run(lambda figures: self._observe(log, figures))
        write_result(pipe, run.adapter, self.result, dtype)

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
