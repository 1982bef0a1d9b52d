"""Group relative policy optimization (GRPO, Shao et al. 2024, arXiv 2402.03300) of painting and of answers.

P prompts of a step, G samples of each, N sampled tokens of some of them.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..blocks.device import synchronize
from ..blocks.errors import OptionError, check_integer, check_number
from ..blocks.sampling.request import SamplingParams
from .adapters import LoraOptions
from .distributed import agreed, exchange, gathered, sum_on_host
from .examples import Example
from .fine_tuning import FineTuning
from .grpo_loss import group_advantages, token_losses
from .policy import Policy, Samples, answer, make_room, paint, uses_more_rows
from .prompts import token_counts
from .reference import Reference, frozen_copy
from .reward import Prompt, Reward, checked_scores, score_figures
from .updates import Updates

UNUSED = {
    "paint": ("aligner.", "language_model.lm_head."),
    "answer": ("aligner.", "gen_", "projector.", "image_newline", "view_seperator"),
}
"""Parameters that stay as they are, by task: those of the other one, and of what reads pictures."""


@dataclass(frozen=True)
class GrpoOptions:
    """How a model is trained by rewards.

    A step samples `group_size` pictures or answers of each of `prompts_per_step` prompts, and makes `updates`
    steps of the optimizer from them, computed `rows_at_once` samples at a time. `learning_rate` None is 1e-6
    in full and 1e-5 for LoRA; it is constant. `beta` weighs the KL divergence from the model before training,
    `clip` bounds the ratio of probabilities to 1 - clip and 1 + clip (of interest with several `updates`),
    and gradients longer than `max_norm` are shortened to it. `guidance_scale` None is the pipeline's own.
    `log_probs` are those of the guided distribution that samples are drawn from, or of its `conditional` row
    alone. Raises `OptionError`.
    """

    steps: int
    prompts_per_step: int = 8
    group_size: int = 8
    updates: int = 1
    rows_at_once: int = 8
    learning_rate: float | None = None
    weight_decay: float = 0.0
    beta: float = 0.01
    clip: float = 0.2
    max_norm: float = 1.0
    guidance_scale: float | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    log_probs: Literal["guided", "conditional"] = "guided"
    max_new_tokens: int = 256
    lora: LoraOptions | None = None
    recompute: bool = False
    seed: int = 0
    save_every: int = 50

    def __post_init__(self) -> None:
        names = ("steps", "prompts_per_step", "updates", "rows_at_once", "max_new_tokens", "save_every")
        for name in names:
            check_integer(name, getattr(self, name), low=1)
        check_integer("group_size", self.group_size, 2, 1024)
        check_integer("seed", self.seed, 0, 2**31 - 1)
        for name in ("weight_decay", "beta"):
            check_number(name, getattr(self, name), low=0.0)
        check_number("clip", self.clip, 0.0, 1.0)
        check_number("max_norm", self.max_norm, low=1e-6)
        check_number("temperature", self.temperature, low=1e-3)
        if self.learning_rate is not None:
            check_number("learning_rate", self.learning_rate, low=0.0)
        if self.log_probs not in ("guided", "conditional"):
            raise OptionError(f"log_probs is {self.log_probs!r}; accepted: guided, conditional")
        _ = self.sampling(1.0)

    @property
    def rate(self) -> float:
        """The learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-6 if self.lora is None else 1e-5

    def sampling(self, guidance_scale: float | None) -> SamplingParams:
        """How samples are drawn; `guidance_scale` is the pipeline's, None for answers."""
        scale = (
            guidance_scale if self.guidance_scale is None or guidance_scale is None else self.guidance_scale
        )
        return SamplingParams(self.temperature, self.top_k, self.top_p, None if scale == 1.0 else scale)


@dataclass
class Clock:
    """Seconds by kind of work."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Add the time of what runs inside."""
        start = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Taken:
    """A step that was taken: its number from 1, and its figures."""

    step: int
    found: Mapping[str, float]

    def figures(self) -> dict[str, float]:
        """The figures, with the step."""
        return {"step": self.step, **self.found}


class GrpoRun(FineTuning):
    """A run: the model with its optimizer, prompts and their reward. `folder` holds checkpoints and log."""

    reads_behind = False

    def __init__(
        self, pipe: Any, prompts: Sequence[Prompt], reward: Reward, options: GrpoOptions, folder: Path
    ) -> None:
        self.prompts, self.reward = prompts, reward
        self.paints = "prompt" in prompts[0]
        self.sampling = options.sampling(pipe.guidance_scale if self.paints else None)
        before = frozen_copy(pipe.model) if options.beta and options.lora is None else None
        super().__init__(pipe, options, folder)
        for name, parameter in pipe.model.named_parameters():
            if name.startswith(UNUSED["paint" if self.paints else "answer"]):
                parameter.requires_grad_(False)
        self.policy = Policy(pipe, self.sampling, options.log_probs == "conditional")
        self.model: nn.Module = self.policy.model
        self.updates = Updates(
            self.model,
            weight_decay=options.weight_decay,
            clip=options.max_norm,
            recompute=options.recompute,
        )
        if options.beta:
            self.policy.reference = Reference(self.policy.model, before)
        with gathered(self.model, self.updates.dtype, everywhere=True):
            self._make_room()

    def _make_room(self) -> None:
        options = self.options
        rows = -(-options.prompts_per_step // self.world) * options.group_size * self.sampling.rows
        if uses_more_rows(self.pipe, rows):
            lengths = (sum(token_counts(self.pipe, one, options.max_new_tokens)) for one in self.prompts)
            make_room(self.pipe, rows, max(lengths))

    def take_step(self, prepared: object) -> Taken:
        """Take a step. Each process samples and judges the groups of its share of the prompts; all of them
        are then learned from together."""
        options, clock = self.options, Clock(self.pipe.device)
        start = self.step * options.prompts_per_step
        share = range(start + self.rank, start + options.prompts_per_step, self.world)
        prompts = [self._prompt(place) for place in share]
        whole = gathered(self.model, self.updates.dtype, everywhere=True)
        with clock.measure("painting" if self.paints else "answering"), whole:
            samples = agreed(lambda: self.sample(prompts))
        with clock.measure("judging"):
            samples, scores = self._everyones(samples, agreed(lambda: self.judge(prompts, samples)))
        figures = score_figures(scores)
        with clock.measure("learning"):
            figures |= self.learn(samples, group_advantages(scores))
        figures |= {f"{kind}_seconds": round(seconds, 3) for kind, seconds in clock.seconds.items()}
        self.step += 1
        return Taken(self.step, figures)

    def _prompt(self, place: int) -> Prompt:
        """The prompt at a place of the run: all prompts in a new random order again and again."""
        turn, index = divmod(place, len(self.prompts))
        order = Random(f"{self.options.seed} order {turn}").sample(
            range(len(self.prompts)), len(self.prompts)
        )
        return self.prompts[order[index]]

    def sample(self, prompts: Sequence[Prompt]) -> Samples:
        """The groups of this process's share of a step's prompts, by seeds that belong to the step."""
        if not prompts:
            return Samples(self.options.group_size, [], [])
        random, options = Random(f"{self.options.seed} samples {self.step}"), self.options
        groups = [
            [random.getrandbits(63) for _ in range(options.group_size)]
            for _ in range(options.prompts_per_step)
        ]
        seeds = [seed for group in groups[self.rank :: self.world] for seed in group]
        return self.draw(prompts, seeds)

    def draw(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Samples:
        """Samples of prompts, one for each seed."""
        if self.paints:
            return paint(self.pipe, prompts, seeds, self.sampling)
        return answer(self.pipe, prompts, seeds, self.sampling, self.options.max_new_tokens)

    def judge(self, prompts: Sequence[Prompt], samples: Samples) -> Tensor:
        """The scores of samples, float64 `[P, G]`, NaN where there is none. Raises `BifronsError` where the
        reward gives something else."""
        each = [prompt for prompt in prompts for _ in range(samples.count)]
        scores = checked_scores(self.reward(each, samples.outputs), len(each)) if each else torch.empty(0)
        return scores.view(len(prompts), samples.count)

    def _everyones(self, samples: Samples, scores_PG: Tensor) -> tuple[Samples, Tensor]:
        """What all processes have sampled, without the outputs, and its scores, in the order of the step's
        prompts."""
        found = exchange((samples.examples, scores_PG))
        count, examples, scores = samples.count, list[Example](), list[Tensor]()
        for place in range(self.options.prompts_per_step):
            (theirs, their_scores), row = found[place % self.world], place // self.world
            examples += theirs[row * count : (row + 1) * count]
            scores.append(their_scores[row])
        return Samples(count, examples, []), torch.stack(scores)

    def learn(self, samples: Samples, advantages_PG: Tensor) -> dict[str, float]:
        """The steps of the optimizer of a step, with a share of the samples on each process; those of groups
        without a difference are left out."""
        options = self.options
        varied = (advantages_PG.nan_to_num() != 0).any(1, keepdim=True)
        used = (varied & advantages_PG.isfinite()).flatten().nonzero()[:, 0].tolist()
        size, share = options.rows_at_once, used[self.rank :: self.world]
        batches = [share[start : start + size] for start in range(0, -(-len(used) // self.world), size)]
        old: list[Tensor] = []
        sums = torch.zeros(4, dtype=torch.float64)
        norms = []
        for update in range(options.updates if used else 0):
            for number, batch in enumerate(batches):
                # Processes compute equally many batches: one without a sample left computes any, for nothing.
                loss, parts, drawn = self._loss(
                    samples, batch or used[:1], advantages_PG, old[number] if update else None
                )
                (loss * (bool(batch) / len(used))).backward()
                sums += parts * bool(batch)
                if update == 0:
                    old.append(drawn)
            norms.append(float(self.updates.apply(options.rate)))
        sums = sum_on_host(sums) / max(1, options.updates * len(used))
        figures = dict(zip(("loss", "kl", "clipped", "length"), sums.tolist(), strict=True))
        return figures | {
            "norm": max(norms, default=0.0),
            "skipped_groups": int((~varied).sum()),
        }

    def _loss(
        self, samples: Samples, batch: Sequence[int], advantages_PG: Tensor, old_N: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The summed losses of samples, each the mean over its tokens; their sums of loss, divergence,
        clipped share and tokens; and the log-probabilities `[N]`."""
        examples, options = [samples.examples[index] for index in batch], self.options
        log_probs_N, reference_N = self.policy.log_probs(examples, options.beta > 0)
        device = log_probs_N.device
        lengths = torch.tensor([one.count for one in examples], device=device)
        advantages = advantages_PG.flatten()[list(batch)].to(device, torch.float32)
        weights_N = (1 / lengths).repeat_interleave(lengths)
        drawn_N = log_probs_N.detach()
        losses = token_losses(
            log_probs_N,
            drawn_N if old_N is None else old_N,
            reference_N,
            advantages.repeat_interleave(lengths),
            options.clip,
            options.beta,
        )
        loss = (losses.loss * weights_N).sum()
        found = (
            loss,
            (losses.divergence * weights_N).sum(),
            (losses.clipped * weights_N).sum(),
            lengths.sum(),
        )
        return loss, torch.stack([one.detach().double().cpu() for one in found]), drawn_N
