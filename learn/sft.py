"""Supervised fine-tuning of both families, full or by LoRA, on one process or several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..blocks.errors import OptionError, check_integer, check_number
from .adapters import LoraOptions
from .distributed import sum_on_host, world
from .examples import Example, Examples, draw
from .fine_tuning import FineTuning
from .losses import KINDS, PARTS, Batch, TrainingModel, collate
from .reference import Reference, frozen_copy
from .schedule import rate_at
from .updates import Updates


@dataclass(frozen=True)
class SftOptions:
    """How a model is fine-tuned.

    `batch_size` rows are one step of the optimizer, computed `rows_at_once` per process. The learning rate
    rises over the first `warmup` of the steps, then falls to zero as a cosine; None is 2e-4 for LoRA and 2e-5
    otherwise, AdamW's betas are (0.9, 0.95). A step's loss is `image_weight` times the mean
    over its image codes plus `text_weight` times that over its answers' tokens. The prompts of a share
    `unconditional` of the rows for painting are replaced by padding, for classifier-free guidance (0.1, as in
    Ho and Salimans 2022). `recompute` keeps only the inputs of the decoder's layers and computes the rest
    again for the gradient, which saves memory. Gradients longer than `clip` are shortened to it.
    `train_vision` trains the vision encoder, too, and goes without `lora`. Raises `OptionError`.
    """

    steps: int
    batch_size: int = 16
    rows_at_once: int = 4
    learning_rate: float | None = None
    weight_decay: float = 0.05
    warmup: float = 0.03
    clip: float = 1.0
    image_weight: float = 1.0
    text_weight: float = 1.0
    unconditional: float = 0.1
    lora: LoraOptions | None = None
    recompute: bool = False
    train_vision: bool = False
    seed: int = 0
    save_every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "rows_at_once", "save_every"):
            check_integer(name, getattr(self, name), low=1)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        for name in ("image_weight", "text_weight", "weight_decay"):
            check_number(name, getattr(self, name), low=0.0)
        check_number("clip", self.clip, low=1e-6)
        for name in ("unconditional", "warmup"):
            check_number(name, getattr(self, name), 0.0, 1.0)
        if self.learning_rate is not None:
            check_number("learning_rate", self.learning_rate, low=0.0)
        if self.train_vision and self.lora is not None:
            raise OptionError("train_vision goes with all weights; accepted: it, or lora")

    @property
    def peak_rate(self) -> float:
        """The largest learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 2e-5 if self.lora is None else 2e-4

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.peak_rate * (step + 1) / rising
        return rate_at((step - rising) / max(1, self.steps - rising), self.peak_rate, 0.0, 0.0)


class Source(Protocol):
    """Rows to learn: `Examples`, a list, or what makes examples as they are drawn. An index must give the
    same example at every call, so that a run that was stopped goes on to the same bits."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


class SftRun(FineTuning):
    """A run: the model with its optimizer, and the order of its rows. `folder` holds checkpoints and log."""

    def __init__(
        self,
        pipe: Any,
        examples: Sequence[Source],
        weights: Sequence[float],
        options: SftOptions,
        folder: Path,
    ) -> None:
        check_share(options.batch_size, world())
        replays = any(isinstance(source, Examples) and source.replayed for source in examples)
        before = frozen_copy(pipe.model) if replays and options.lora is None else None
        super().__init__(pipe, options, folder, options.train_vision)
        self.examples = examples
        sizes = list(map(len, examples))
        self.order = draw(sizes, weights, options.steps * options.batch_size, options.seed)
        module = TrainingModel(pipe.model)
        self.model: nn.Module = module
        self.updates = Updates(
            self.model, weight_decay=options.weight_decay, clip=options.clip, recompute=options.recompute
        )
        self.reference = Reference(module, before) if replays else None

    def prepare(self, step: int) -> list[Batch]:
        return self.batches(min(step, self.options.steps - 1))

    def batches(self, step: int) -> list[Batch]:
        """This process's share of a step's rows, in batches of `rows_at_once`."""
        size = self.options.batch_size
        places = range(step * size + self.rank, (step + 1) * size, self.world)
        examples = [self._example(int(self.order[place])) for place in places]
        dropped = [self._is_dropped(place) for place in places]
        pad, count = getattr(self.pipe.processor, "pad_id", 0), self.options.rows_at_once
        found = [
            collate(examples[start : start + count], pad, dropped[start : start + count])
            for start in range(0, len(examples), count)
        ]
        return [batch.pinned() for batch in found] if self.pipe.device.type == "cuda" else found

    def _example(self, row: int) -> Example:
        for source in self.examples:
            if row < len(source):
                return source[row]
            row -= len(source)
        raise IndexError(row)

    def _is_dropped(self, place: int) -> bool:
        """Whether the row at a place of the order is trained without its prompt; the same on any number of
        processes."""
        return Random(f"{self.options.seed} unconditional {place}").random() < self.options.unconditional

    def take_step(self, batches: Sequence[Batch]) -> "Taken":
        """Take one step of the optimizer with this process's batches of it."""
        options, rate = self.options, self.options.rate(self.step)
        amounts = torch.tensor([[batch.amounts[part] for part in PARTS] for batch in batches]).sum(0)
        tokens = dict(zip(PARTS, sum_on_host(amounts).tolist(), strict=True))
        used = [part for part, count in tokens.items() if count]
        weights = {"image": options.image_weight, "text": options.text_weight}
        scales = {kind: weights[kind] / max(1, tokens[kind]) for kind in KINDS}
        sums = torch.zeros(len(KINDS), device=self.pipe.device)
        for batch in batches:
            losses = self.model(batch, used, self._before(batch))
            sums += torch.stack([losses[kind].detach() for kind in KINDS])
            torch.stack([scales[kind] * losses[kind] for kind in KINDS]).sum().backward()
        norm = self.updates.apply(rate)
        if self.world > 1:
            dist.all_reduce(sums)
        self.step += 1
        return Taken(self.step, rate, tokens, torch.cat((sums, norm[None])))

    def _before(self, batch: Batch) -> Tensor | None:
        """The logits of a batch's replayed rows before training."""
        if self.reference is None or not batch.replayed:
            return None
        return self.reference.logits(batch.of_replayed())[0]


@dataclass(frozen=True)
class Taken:
    """A step that was taken: its number from 1, its learned tokens over all processes by loss, and `values`,
    float32 `[KINDS + 1]` on the device: the sums of the losses, and the length of the gradient."""

    step: int
    rate: float
    tokens: Mapping[str, int]
    values: Tensor

    def figures(self) -> dict[str, float]:
        """The mean losses, the gradient's length, the learning rate and the step. Waits for the device."""
        *sums, norm = self.values.tolist()
        counts = [self.tokens[kind] for kind in KINDS]
        losses = {f"{k}_loss": s / n for k, s, n in zip(KINDS, sums, counts, strict=True) if n}
        return losses | {"norm": norm, "rate": self.rate, "step": self.step}


def check_share(batch_size: int, processes: int) -> None:
    """Raise `OptionError` if processes can't have equal shares of a batch."""
    if batch_size % processes:
        raise OptionError(
            f"batch_size is {batch_size}; accepted: a multiple of the {processes} processes, one a GPU"
        )
