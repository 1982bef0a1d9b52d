"""Supervised fine-tuning of both families, full or by LoRA, on one process or several (`torchrun`)."""

import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..blocks.errors import OptionError, check_integer, check_number
from . import checkpoints
from .adapters import LoraOptions, add_adapter
from .examples import Example, Examples, draw
from .losses import KINDS, Batch, TrainingModel, collate


@dataclass(frozen=True)
class SftOptions:
    """How a model is fine-tuned.

    `batch_size` rows are one step of the optimizer, computed `rows_at_once` per process. The learning rate
    rises over the first `warmup` of the steps, then falls to zero as a cosine; None is 2e-4 for LoRA and 2e-5
    otherwise, AdamW's betas are (0.9, 0.95). A step's loss is `image_weight` times the mean
    over its image codes plus `text_weight` times that over its answers' tokens. The prompts of a share
    `unconditional` of the rows for painting are replaced by padding, for classifier-free guidance (0.1, as in
    Ho and Salimans 2022). `recompute` keeps only the inputs of the decoder's layers and computes the rest
    again for the gradient, which saves memory. Gradients longer than `clip` are shortened to it. Raises
    `OptionError`.
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

    @property
    def peak_rate(self) -> float:
        """The largest learning rate."""
        return self.learning_rate or (2e-5 if self.lora is None else 2e-4)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.peak_rate * (step + 1) / rising
        done = (step - rising) / max(1, self.steps - rising)
        return self.peak_rate * 0.5 * (1 + math.cos(math.pi * done))


class SftRun:
    """A run: the model with its optimizer, and the order of its rows. `folder` holds checkpoints and log."""

    def __init__(
        self,
        pipe: Any,
        examples: Sequence[Examples],
        weights: Sequence[float],
        options: SftOptions,
        folder: Path,
    ) -> None:
        self.pipe, self.options, self.folder = pipe, options, folder
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if options.batch_size % self.world:
            raise OptionError(
                f"batch_size is {options.batch_size}; accepted: a multiple of the {self.world} processes"
            )
        self.examples = examples
        sizes = list(map(len, examples))
        self.order = draw(sizes, weights, options.steps * options.batch_size, options.seed)
        self.adapter = prepare_model(pipe, options.lora, options.recompute, options.seed)
        self.model: nn.Module = TrainingModel(pipe.model)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.trained = trained
        self.optimizer = torch.optim.AdamW(
            trained, lr=options.peak_rate, betas=(0.9, 0.95), weight_decay=options.weight_decay
        )
        self.step = 0

    def resume(self) -> int:
        """Load the last checkpoint, if there is one; returns the number of steps that are done."""
        if found := checkpoints.latest(self.folder / "checkpoints"):
            self.step = found[0]
            checkpoints.load(found[1], self.model, self.optimizer)
        return self.step

    def run(self, callback: Callable[[dict[str, float]], None] = lambda figures: None) -> None:
        """Train to the last step. `callback` gets a step's figures, which are also a line of `log.jsonl`."""
        steps = self.options.steps
        with ThreadPoolExecutor(1) as loader:
            following = loader.submit(self._batches, self.step)
            while self.step < steps:
                batches = following.result()
                following = loader.submit(self._batches, min(self.step + 1, steps - 1))
                start = time.perf_counter()
                figures = self._train(batches)
                self.step += 1
                figures |= {"step": self.step, "seconds": round(time.perf_counter() - start, 4)}
                if self.rank == 0:
                    with (self.folder / "log.jsonl").open("a") as log:
                        log.write(json.dumps(figures) + "\n")
                    callback(figures)
                if self.step % self.options.save_every == 0 or self.step == steps:
                    checkpoints.save(self.folder / "checkpoints", self.step, self.model, self.optimizer)

    def _batches(self, step: int) -> list[Batch]:
        """This process's share of a step's rows, in batches of `rows_at_once`."""
        size = self.options.batch_size
        places = range(step * size + self.rank, (step + 1) * size, self.world)
        examples = [self._example(int(self.order[place])) for place in places]
        dropped = [self._is_dropped(place) for place in places]
        pad, count = getattr(self.pipe.processor, "pad_id", 0), self.options.rows_at_once
        return [
            collate(examples[start : start + count], pad, dropped[start : start + count])
            for start in range(0, len(examples), count)
        ]

    def _example(self, row: int) -> Example:
        for source in self.examples:
            if row < len(source):
                return source[row]
            row -= len(source)
        raise IndexError(row)

    def _is_dropped(self, place: int) -> bool:
        """Whether the row at a place of the order is trained without its prompt; the same on any number of
        processes."""
        generator = torch.Generator().manual_seed((self.options.seed << 32 | place) % 2**63)
        return float(torch.rand((), generator=generator)) < self.options.unconditional

    def _train(self, batches: Sequence[Batch]) -> dict[str, float]:
        options, device = self.options, self.pipe.device
        learned = torch.tensor([[batch.counts[kind] for kind in KINDS] for batch in batches])
        counts = self._sum(learned.sum(0).to(device))
        weights = {"image": options.image_weight, "text": options.text_weight}
        scales = {k: weights[k] / max(1, int(n)) for k, n in zip(KINDS, counts, strict=True)}
        sums = torch.zeros(len(KINDS), device=device)
        for batch in batches:
            with autocast(self.pipe):
                losses = self.model(batch)
            sums += torch.stack([losses[kind].detach() for kind in KINDS])
            torch.stack([scales[kind] * losses[kind] for kind in KINDS]).sum().backward()
        self._sum_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, options.clip)
        rate = options.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        sums = self._sum(sums)
        losses = {k: float(s) / int(n) for k, s, n in zip(KINDS, sums, counts, strict=True) if int(n)}
        return {f"{kind}_loss": value for kind, value in losses.items()} | {"norm": float(norm), "rate": rate}

    def _sum(self, values: Tensor) -> Tensor:
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def _sum_gradients(self) -> None:
        if self.world > 1:
            for parameter in self.trained:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)


def prepare_model(pipe: Any, lora: LoraOptions | None, recompute: bool, seed: int) -> Any:
    """Make trainable what is to be trained: a new adapter, or the decoder with the heads and embeddings of
    both tasks; vision encoder and image tokenizer stay as they are. Returns the adapter's config, or None."""
    model = pipe.model.requires_grad_(False).train()
    adapter = None
    if lora is not None:
        torch.manual_seed(seed)  # for the first values of the adapter
        adapter = add_adapter(model, lora, pipe.name)
    else:
        frozen = ("vision_model.", "vision.", "gen_vision_model.")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen) and parameter.is_floating_point())
    if recompute:
        for block in model.decoder.layers:
            block.forward = _recomputed(block.forward)
    return adapter


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*args: Any) -> Tensor:
        return checkpoint(forward, *args, use_reentrant=False)

    return run


def autocast(pipe: Any) -> Any:
    """Bfloat16 products on a GPU; the CPU computes in the weights' dtype."""
    if pipe.device.type != "cuda":
        return nullcontext()
    return torch.autocast("cuda", torch.bfloat16)
