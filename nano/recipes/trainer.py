"""The training loop of the recipes: time-based schedule, resumable, one CUDA graph per step.

The models are so small that launching a step's kernels one by one takes several times as long as running
them. A step therefore consists of tensor operations only, reads its learning rate from a tensor, and is
captured as a CUDA graph.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .optimizer import Muon, split_parameters
from .training_state import Average, Clock, load_state, save_state

M = TypeVar("M", bound=nn.Module)

SAVE_EVERY = 150.0
"""Seconds between checkpoints of the training state."""


@dataclass(frozen=True)
class RunConfig:
    """Settings of a training run.

    seconds: training time, summed over restarts. wall: limit on this process's run time in seconds, which
    shortens the schedule if needed. graph: capture steps as a CUDA graph.
    """

    folder: Path
    seconds: float
    wall: float = 1e9
    seed: int = 0
    device: str = "cpu"
    graph: bool = True
    peak_lr: float | None = None
    """Peak learning rate; None uses the recipe's own."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser, folder: str, seconds: float) -> None:
        """Add the command-line options of a recipe, with its default folder and training time."""
        parser.add_argument("--folder", type=Path, default=Path(folder), help="inputs, state and result")
        parser.add_argument("--seconds", type=float, default=seconds, help="training time, over all restarts")
        parser.add_argument(
            "--wall", type=float, default=1e9, help="limit on the run time in seconds; shortens the schedule"
        )
        parser.add_argument("--no-graph", action="store_true", help="don't capture a CUDA graph")
        parser.add_argument("--peak-rate", type=float, help="peak learning rate; by default the recipe's own")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "RunConfig":
        """Read the options of `add_arguments`."""
        graph = not args.no_graph
        return cls(args.folder, args.seconds, args.wall, args.seed, args.device, graph, args.peak_rate)


class Trainer(Generic[M]):
    """Base class of the recipes, which implement `losses` and may override `export`."""

    name: ClassVar[str]
    loss_weights: ClassVar[dict[str, float]] = {}
    """Weights of the losses in the total; 1 by default."""
    peak_lr: ClassVar[float]
    """Peak learning rate."""

    def __init__(self, run: RunConfig) -> None:
        self.run_config, self.folder, self.device, self.step = run, run.folder, run.device, 0
        self.started = time.monotonic()
        torch.manual_seed(run.seed)
        torch.set_float32_matmul_precision("high")

    def log(self, text: str) -> None:
        """Print a message with the seconds since the start."""
        print(f"{time.monotonic() - self.started:.0f}s: {text}", flush=True)

    def setup(self, model: M, trainable: nn.Module | None = None, compiled: Iterable[nn.Module] = ()) -> None:
        """Set the model and create its optimizers.

        Only the parameters of `trainable`, by default the whole model, are optimized; the modules `compiled`
        are compiled on CUDA.
        """
        self.model, self.compiled = model, list(compiled)
        self.average = Average(model)
        self.learning_rate = torch.zeros((), device=self.device)
        matrices, rest = split_parameters(trainable or model)
        cuda = self.device == "cuda"
        adam = torch.optim.AdamW(
            rest, self.learning_rate, betas=(0.9, 0.95), weight_decay=0.01, capturable=cuda, foreach=cuda
        )
        self.optimizers: list[torch.optim.Optimizer] = [Muon(matrices, self.learning_rate), adam]
        self.clock = Clock(self.run_config.seconds)

    def losses(self) -> dict[str, Tensor]:
        """Sample a batch and compute its losses by name. Losses without a gradient are only logged."""
        raise NotImplementedError

    def update(self) -> dict[str, Tensor]:
        """One training step, in tensor operations only; returns the detached losses."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        losses = self.losses()
        torch.stack(
            [self.loss_weights.get(k, 1.0) * v for k, v in losses.items() if v.requires_grad]
        ).sum().backward()
        params: list[Tensor] = [
            p for o in self.optimizers for group in o.param_groups for p in group["params"]
        ]
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update(self.model)
        return {k: v.detach() for k, v in losses.items()}

    def prepare_step(self) -> Callable[[], dict[str, Tensor]]:
        """A function that runs `update`, on CUDA compiled and captured; warm-up steps are undone."""
        if self.device != "cuda":
            self.update()  # creates the optimizer state for `resume` to fill; the learning rate is zero
            return self.update
        for module in self.compiled:
            module.compile(dynamic=False)
        before = [p.detach().clone() for p in self.model.parameters()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.update()
        torch.cuda.current_stream().wait_stream(stream)
        if not self.run_config.graph:
            self.restore(before)
            return self.update
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            losses = self.update()
        self.restore(before)

        def replay() -> dict[str, Tensor]:
            graph.replay()
            return losses

        return replay

    @torch.no_grad()
    def restore(self, weights: Sequence[Tensor]) -> None:
        """Reset the weights and their average to `weights`, and the optimizer state to zero."""
        torch._foreach_copy_(list(self.model.parameters()), list(weights))
        torch._foreach_copy_(list(self.average.model.parameters()), list(weights))
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                for value in state.values():
                    value.zero_()

    @property
    def _state_file(self) -> Path:
        return self.folder / f"{self.name}.state"

    def resume(self) -> None:
        """Load the saved training state, if any, into the existing tensors, which a captured step uses."""
        state = load_state(self._state_file, self.device)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            tensors = [value for entry in optimizer.state.values() for value in entry.values()]
            if tensors:
                torch._foreach_copy_(tensors, saved)
        self.step, self.clock.spent = state["step"], state["spent"]

    def save(self) -> None:
        """Write the training state, and export the averaged weights."""
        optimizers = [[v for entry in o.state.values() for v in entry.values()] for o in self.optimizers]
        state = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimizers": optimizers,
            "step": self.step,
            "spent": self.clock.elapsed,
        }
        save_state(self._state_file, state)
        self.export()

    def export(self) -> None:
        """Write the averaged weights in bfloat16 to `model.safetensors`."""
        weights = {k: v.to(torch.bfloat16).contiguous() for k, v in self.average.model.state_dict().items()}
        save_file(weights, self.folder / "model.safetensors", {"format": "pt"})

    def run(self) -> None:
        """Train until the time is up, saving every SAVE_EVERY seconds and at the end."""
        peak_lr = self.run_config.peak_lr or self.peak_lr
        step = self.prepare_step()
        self.resume()
        torch.manual_seed(self.run_config.seed + 1000 * self.step)
        self.clock.started = last_save = time.monotonic()
        remaining = self.run_config.wall - (last_save - self.started)
        self.clock.seconds = min(self.clock.seconds, self.clock.spent + remaining)
        self.log(f"ready to train for {self.clock.seconds - self.clock.spent:.0f}s")
        while self.clock.progress < 1:
            self.learning_rate.fill_(self.clock.learning_rate(peak_lr))
            self.average.age(self.step)
            losses = step()
            self.step += 1
            if self.step % 10 == 0:
                # `item` synchronizes, which keeps the clock in step with the GPU.
                values = " ".join(f"{k} {v.item():.4f}" for k, v in losses.items())
                if self.step % 200 == 0 or self.device == "cpu":
                    self.log(f"step {self.step} {values}")
            if time.monotonic() - last_save > SAVE_EVERY:
                self.save()
                last_save = time.monotonic()
        self.save()
        self.log(f"{self.step} steps done")


def initialize(model: nn.Module, depth: int, skip: str | None = None) -> None:
    """Initialize the weights of a transformer of `depth` blocks as in GPT-2, except those named `skip`*.

    Matrices are normal with a standard deviation of 0.02, divided by sqrt(2 depth) for projections into the
    residual stream; patch embeddings have 1 / sqrt(fan-in). Biases are zero.
    """
    residual = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight", "experts.down")
    for name, param in model.named_parameters():
        if skip is not None and name.startswith(skip):
            continue
        if name.endswith("patch_embed.proj.weight"):
            nn.init.normal_(param, std=param[0].numel() ** -0.5)
        elif param.ndim >= 2:
            nn.init.normal_(param, std=0.02 / (2 * depth) ** 0.5 if name.endswith(residual) else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(param)
