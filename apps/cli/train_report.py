"""A run's result on the disk, and what it gained and lost: the loss on rows kept out, and evaluations."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from ...blocks.conversion.adapter import is_adapter
from ...blocks.errors import BifronsError, ResourceError, counted
from ...learn.adapters import save_adapter
from ...learn.processes import alone
from ..notes import is_quiet, note

if TYPE_CHECKING:
    from ..pipelines import Pipeline

LESS_MEMORY = "accepted: --recompute, fewer --rows-at-once, or --lora in place of all weights"
"""What to do if training needs more memory than there is."""
_LOSSES = {"image_loss": "image tokens", "text_loss": "answers"}


def compare_suites(run: Path, args: argparse.Namespace, result: Path) -> list[dict[str, Any]]:
    """Evaluate the model and the result on every suite of `--eval`, each in a process of its own.

    Raises `BifronsError` where an evaluation fails, which has said why.
    """
    before = ["--model", args.model, *(["--adapter", str(args.adapter)] if args.adapter else [])]
    after = ["--model", str(result)]
    if is_adapter(result):
        after = ["--model", args.model, "--adapter", str(result)]
    evaluations = []
    for suite in args.eval:
        found: dict[str, Any] = {"suite": suite}
        folders = []
        for when, model in (("before", before), ("after", after)):
            note(f"evaluating {suite}, {when}")
            folders.append(str(run / "eval" / f"{suite}-{when}"))
            words = ["run", "--suite", suite, *model, "-R", folders[-1], "--json"]
            words += ["--limit", str(args.eval_limit)] if args.eval_limit else []
            words += ["--device", args.device] if args.device else []
            found[when] = json.loads(_evaluation(words))
        found["comparison"] = _evaluation(["compare", *folders])
        evaluations.append(found)
    return evaluations


def _evaluation(words: list[str]) -> str:
    """What `bifrons eval` prints."""
    command = [sys.executable, "-m", "bifrons", "eval", *words, *(["--quiet"] if is_quiet() else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=alone())
    if done.returncode:
        raise BifronsError(f"`bifrons eval {' '.join(words)}` failed; what it says stands above")
    return done.stdout


def report_lines(facts: dict[str, Any]) -> list[str]:
    """The report as Markdown."""
    by_rewards = "reward_first" in facts
    data = "prompt" if by_rewards else "row"
    lines = [
        f"# Training of {facts['model']} by rewards" if by_rewards else f"# Fine-tuning of {facts['model']}",
        "",
        f"{counted(facts['steps'], 'step')} on {counted(facts[f'{data}s'], data)} "
        f"({facts[f'bad_{data}s']:,} left out), "
        f"{facts['trained_parameters']:,} trained parameters; result: {facts['result']}",
        "",
        *(_reward_lines(facts) if by_rewards else _loss_lines(facts)),
    ]
    for one in facts["evaluations"]:
        overall = [one[when].get("overall") for when in ("before", "after")]
        if None not in overall:
            lines.append(f"{one['suite']}: {overall[0]:.1%} before, {overall[1]:.1%} after")
        lines += ["", "```text", one["comparison"].rstrip(), "```", ""]
    return lines


def _loss_lines(facts: dict[str, Any]) -> list[str]:
    if not facts["after"]:
        return []
    rows = [
        f"| {text} | {facts['before'].get(name, float('nan')):.4f} | {facts['after'][name]:.4f} |"
        for name, text in _LOSSES.items()
        if name in facts["after"]
    ]
    return ["| loss on rows kept out | before | after |", "|---|---|---|", *rows, ""]


def _reward_lines(facts: dict[str, Any]) -> list[str]:
    return [
        "| | first tenth of the steps | last tenth |",
        "|---|---|---|",
        f"| mean reward | {facts['reward_first']:.4f} | {facts['reward_last']:.4f} |",
        "",
        f"KL divergence from the model before training, per token, in the last step: {facts['kl']:.4f}; "
        f"{counted(facts['skipped_groups'], 'group')} without a difference, from which nothing is learned",
        "",
    ]


def write_result(pipe: "Pipeline", adapter: Any, result: Path, dtype: torch.dtype) -> None:
    """Write the trained adapter, or without one the model in `dtype`. Raises `ResourceError`."""
    pipe.model.eval()
    try:
        if adapter is not None:
            save_adapter(pipe.model, adapter, result, pipe.taught_words, dtype)
        else:
            pipe.to(dtype).save_pretrained(result)
    except SafetensorError as error:  # of a full disk
        raise ResourceError(f"can't write {result}: {error}") from error
