"""`bifrons train grpo`: from prompts and a reward to a trained model or an adapter."""

import argparse
import hashlib
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...blocks.checkpoints.hub import open_model
from ...blocks.errors import OptionError
from ...blocks.files import atomic_write
from ...learn.curves import curves, read_log
from ...learn.distributed import agreed, from_first
from ...learn.grpo import GrpoOptions, GrpoRun
from ...learn.prompts import asked, check_prompts, new_words, read_prompts
from ...learn.reward import Prompt, Reward
from ...learn.rewards.choose import RewardOptions, WeightedRewards, make_reward
from ...learn.rows import Fault
from ...learn.run_folder import LOG
from ..pipelines import as_janus
from .inputs import user_path
from .options import given_fields
from .train_data import Source, report_faults
from .train_processes import in_processes, opened_run, processes_to_start
from .train_sft import lora_options
from .train_work import SAMPLES, Training, adapter_settings, check_observation

if TYPE_CHECKING:
    from ..pipelines import Pipeline

PANELS = {"reward": "mean reward", "kl": "KL divergence from the model before training, per token"}
"""What RUN/curves.svg shows."""


def grpo(args: argparse.Namespace) -> int:
    """Train a model by rewards; returns the exit status."""
    options = GrpoOptions(**{**given_fields(args, GrpoOptions), "lora": lora_options(args)})
    check_observation(args)
    run_dir, processes = user_path(str(args.output)), processes_to_start(args)
    if processes > 1:
        return in_processes(args, run_dir, processes)
    return _Grpo(args, options, run_dir).command()


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
    settings |= adapter_settings(options.lora)
    digest = hashlib.sha256(repr(prompts).encode()).hexdigest()
    return settings | {"prompts": digest, "reward": args.reward, "reward_weight": args.reward_weight}


class _Grpo(Training):
    """The work of one command, once its arguments were checked."""

    def work(self, device: torch.device, stack: ExitStack) -> dict[str, Any]:
        args, path = self.args, user_path(str(self.args.prompts))
        reward = agreed(lambda: _reward(args))
        prompts, faults = from_first(lambda: _read(path))
        agreed(lambda: open_model(args.model))
        stack.enter_context(opened_run(self.run_dir, _settings(args, self.options, prompts)))
        return self.train_once(lambda: self._train(device, reward, prompts, faults))

    def report(self, facts: dict[str, Any], started: float) -> None:
        """Write and print what the log says, too."""
        log = read_log(self.run_dir / LOG)
        with atomic_write(self.run_dir / "curves.svg") as stream:
            stream.write(curves(log, PANELS).encode())
        super().report(facts | _summary(log), started)

    def _train(
        self,
        device: torch.device,
        reward: WeightedRewards,
        prompts: list[tuple[str, Prompt]],
        faults: list[Fault],
    ) -> dict[str, Any]:
        pipe = agreed(lambda: self.load(device))
        dtype = pipe.dtype
        good, bad = from_first(lambda: self._check(pipe, prompts, faults, reward))
        self.teach(pipe, lambda known: new_words(good, known))
        run = agreed(lambda: GrpoRun(pipe, good, reward, self.options, self.run_dir))
        self.resume(run)
        shown = from_first(lambda: self._sample_prompts(pipe, good))
        seeds = [self.options.seed] * len(shown)
        self.run_steps(run, list(map(asked, shown)), lambda: run.draw(shown, seeds).outputs)
        return self.finish(run, dtype, {"prompts": len(good), "bad_prompts": bad})

    def _check(
        self,
        pipe: "Pipeline",
        prompts: list[tuple[str, Prompt]],
        faults: list[Fault],
        reward: WeightedRewards,
    ) -> tuple[list[Prompt], int]:
        """The prompts to train on, and the number of those left out."""
        if "prompt" in prompts[0][1] and as_janus(pipe) is None:
            raise OptionError("prompts to paint need a Janus model; accepted for others: messages to answer")
        good, more = check_prompts(pipe, prompts, self.options.max_new_tokens, reward.check)
        data = Source(self.args.prompts, None, [], [], [*faults, *more])
        report_faults([data], self.run_dir, self.args.on_bad_rows == "stop")
        if not good:
            raise OptionError(f"no prompt of {self.args.prompts} can be used: {data.faults[0]}")
        return good, len(data.faults)

    def _sample_prompts(self, pipe: "Pipeline", prompts: list[Prompt]) -> list[Prompt]:
        """What is sampled for the page of samples."""
        if not self.args.sample_every:
            return []
        if not self.args.sample:
            distinct = {prompt.get("prompt") or repr(prompt["messages"]): prompt for prompt in prompts}
            return list(distinct.values())[:SAMPLES]
        paints = "prompt" in prompts[0]
        texts: list[str] = self.args.sample
        named = [
            {"prompt": text} if paints else {"messages": [{"role": "user", "content": text}]}
            for text in texts
        ]
        good, faults = check_prompts(pipe, [("--sample", one) for one in named], self.options.max_new_tokens)
        if faults:
            raise OptionError(f"a prompt can't be sampled: {faults[0]}")
        return good


def _summary(log: list[dict[str, float]]) -> dict[str, float]:
    tenth = max(1, len(log) // 10)
    first, last = ([one["reward"] for one in part] for part in (log[:tenth], log[-tenth:]))
    return {
        "steps": len(log),
        "reward_first": sum(first) / tenth,
        "reward_last": sum(last) / tenth,
        "kl": log[-1]["kl"],
        "skipped_groups": int(sum(one["skipped_groups"] for one in log)),
    }
