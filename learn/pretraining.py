"""Training from new weights, on examples that are on the device: by steps or by the clock, in steps that are
captured as a CUDA graph, on one process or several.

Small models take several times longer to launch a step's kernels one by one than to run them. A step
therefore consists of tensor operations only, and reads its learning rate from a tensor.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..blocks.errors import OptionError, check_integer, check_number
from . import checkpoints
from .average import Average
from .distributed import sum_gradients
from .loop import Loop
from .optimizers import KINDS, make_optimizers
from .schedule import Clock, rate_at


@dataclass(frozen=True)
class PretrainingOptions:
    """How a model is trained.

    Either `steps` or `seconds` say how long: seconds are those of training, over all restarts, without
    compiling and capturing. `wall` bounds the seconds of this process, with these, and shortens the schedule.
    The learning rate rises over the share `warmup`, stays, and falls from the share `decay_from` on as a
    cosine. `optimizer` is `muon` or `adamw`; `matrix_decay` is Muon's weight decay. Gradients longer than
    `clip` are shortened to it. `average` is the decay of the average of the weights that
    `Pretraining.averaged` gives. `capture` and `compile` speed up steps on CUDA. Raises `OptionError`.
    """

    learning_rate: float
    steps: int | None = None
    seconds: float | None = None
    wall: float | None = None
    warmup: float = 0.02
    decay_from: float = 0.4
    optimizer: str = "muon"
    weight_decay: float = 0.01
    matrix_decay: float = 0.1
    clip: float = 1.0
    average: float = 0.999
    save_seconds: float = 150.0
    report_every: int = 10
    seed: int = 0
    capture: bool = True
    compile: bool = True

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise OptionError("steps and seconds: accepted is one of them")
        for name in ("steps", "report_every"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), low=1)
        check_integer("seed", self.seed, 0, 2**48)
        for name in ("learning_rate", "weight_decay", "matrix_decay", "save_seconds"):
            check_number(name, getattr(self, name), low=0.0)
        for name in ("seconds", "wall", "clip"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), low=1e-6)
        check_number("warmup", self.warmup, 0.0, 1.0)
        for name in ("decay_from", "average"):
            check_number(name, getattr(self, name), 0.0, 0.999999)
        if self.optimizer not in KINDS:
            raise OptionError(f"optimizer is {self.optimizer!r}; accepted: {', '.join(KINDS)}")


class Objective(nn.Module):
    """What is trained: as a module, the weights (those with `requires_grad`) and what else a checkpoint needs
    (buffers); and its losses."""

    loss_weights: Mapping[str, float] = {}
    """Weights of the losses in the total; 1 by default."""

    def losses(self) -> dict[str, Tensor]:
        """Draw examples, and compute their losses by name, in tensor operations of the same shapes at every
        call. Those without a gradient are only logged."""
        raise NotImplementedError

    def end_step(self) -> None:
        """What is done after the weights were changed, in tensor operations."""

    def begin_step(self, progress: float) -> bool:
        """Prepare a step, at a progress from 0 to 1; whether `losses` computes something else from now on."""
        del progress
        return False

    def compiled(self) -> Iterable[nn.Module]:
        """Modules that are worth compiling."""
        return ()


class Pretraining(Loop):
    """A run of training from new weights. `folder` holds checkpoints and log."""

    def __init__(self, objective: Objective, options: PretrainingOptions, folder: Path) -> None:
        super().__init__(folder)
        self.objective, self.options, self.report_every = objective, options, options.report_every
        self.device = next(objective.parameters()).device
        self.rate = torch.zeros((), device=self.device)
        self.optimizers = make_optimizers(
            objective, options.optimizer, self.rate, options.weight_decay, options.matrix_decay
        )
        self.trained = [p for o in self.optimizers for group in o.param_groups for p in group["params"]]
        self.state = _State(objective, options.average)
        self.clock, self.process_clock = Clock(), Clock()
        self.seconds, self.progress, self._last_save = options.seconds, 0.0, 0.0
        self._captured = _CapturedStep(
            self._compute_gradients, self._update, self.trained, self.device, options.capture
        )
        if options.compile and self.device.type == "cuda":
            # Layers of several kinds and tasks of several widths share their code.
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
            for module in objective.compiled():
                module.compile(dynamic=False)

    def is_done(self) -> bool:
        return self._progress() >= 1

    def is_due(self) -> bool:
        return self._agreed(self.clock.elapsed - self._last_save) > self.options.save_seconds

    def _progress(self) -> float:
        if self.options.steps is not None:
            return self.step / self.options.steps
        assert self.seconds is not None
        return self._agreed(self.clock.elapsed / self.seconds)

    def _agreed(self, value: float) -> float:
        """The first process's value."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)

    def run(
        self,
        callback: Callable[[dict[str, float]], None] = lambda figures: None,
        pause: Callable[[], None] = lambda: None,
        pause_every: int = 0,
    ) -> None:
        """Train to the end, as `Loop.run` does, in the numbers' order that belongs to the step."""
        torch.manual_seed(self.options.seed + 1000 * self.step + 1_000_003 * self.rank)
        self.clock.start(float(self.state.seconds))
        self._last_save = self.clock.elapsed
        self._bound()
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            super().run(callback, pause, pause_every)

    def _bound(self) -> None:
        if self.seconds is not None and self.options.wall is not None:
            left = self.options.wall - self.process_clock.elapsed
            self.seconds = min(self.seconds, self.clock.elapsed + max(left, 1e-6))

    def take_step(self, prepared: object) -> "LossFigures":
        progress, options = min(1.0, self._progress()), self.options
        if self.objective.begin_step(progress):
            self._captured.forget()
        rate = rate_at(progress, options.learning_rate, options.warmup, options.decay_from)
        self.rate.fill_(rate)
        self.state.average.age(self.step)
        start, is_new = time.monotonic(), not self._captured.is_ready
        losses = self._captured()
        if is_new:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.clock.leave_out(time.monotonic() - start)
            self._bound()
        self.step += 1
        return LossFigures(self.step, rate, list(losses), torch.stack(list(losses.values())))

    def _compute_gradients(self) -> dict[str, Tensor]:
        for parameter in self.trained:
            parameter.grad = None
        losses = self.objective.losses()
        weights = self.objective.loss_weights
        total = [weights.get(name, 1.0) * loss for name, loss in losses.items() if loss.requires_grad]
        (torch.stack(total).sum() / self.world).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.trained, self.options.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.objective.end_step()
        self.state.average.update()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The objective's weights are their average: to be evaluated or saved."""
        with self.state.average.in_place():
            yield

    def save(self) -> None:
        self.state.seconds.fill_(self.clock.elapsed)
        checkpoints.save(self.checkpoints, self.step, self.state, *self.optimizers)
        self._last_save = self.clock.elapsed

    def load(self, path: Path) -> None:
        self._captured.forget()
        for parameter in self.trained:
            parameter.grad = None  # with gradients, the optimizers' state would not be made to be loaded
        checkpoints.load(path, self.state, *self.optimizers)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate


class _State(nn.Module):
    """What a checkpoint holds beside the optimizers."""

    def __init__(self, objective: Objective, decay: float) -> None:
        super().__init__()
        self.objective, self.average = objective, Average(objective, decay)
        self.seconds: Tensor
        self.register_buffer("seconds", torch.zeros((), dtype=torch.float64))


class _CapturedStep:
    """A step in two parts, the gradients and the update, between which processes add up their gradients. On
    CUDA each is captured as a graph after three steps: in the first ones kernels are chosen and compiled."""

    EAGER_STEPS = 3

    def __init__(
        self,
        compute_gradients: Callable[[], dict[str, Tensor]],
        update: Callable[[], None],
        trained: Sequence[nn.Parameter],
        device: torch.device,
        capture: bool,
    ) -> None:
        self.compute_gradients, self.update = compute_gradients, update
        self.trained = trained
        self.captures = capture and device.type == "cuda"
        self.forget()

    def forget(self) -> None:
        """Capture anew."""
        self.eager, self.graphs, self.losses = 0, list[torch.cuda.CUDAGraph](), dict[str, Tensor]()

    @property
    def is_ready(self) -> bool:
        """Whether the next step takes no longer than others."""
        return bool(self.graphs) or (self.eager >= self.EAGER_STEPS and not self.captures)

    def __call__(self) -> dict[str, Tensor]:
        """Take a step; its losses, which the next step overwrites."""
        if not self.captures or self.eager < self.EAGER_STEPS:
            self.eager += 1
            losses = self.compute_gradients()
            sum_gradients(self.trained)
            self.update()
            return losses
        if not self.graphs:
            self._capture()
        gradients, update = self.graphs
        gradients.replay()
        sum_gradients(self.trained)
        update.replay()
        return self.losses

    def _capture(self) -> None:
        stream = torch.cuda.current_stream()
        first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(first, stream=stream, capture_error_mode="thread_local"):
            self.losses = self.compute_gradients()
        with torch.cuda.graph(second, stream=stream, capture_error_mode="thread_local"):
            self.update()
        self.graphs = [first, second]


@dataclass(frozen=True)
class LossFigures:
    """The losses of a step: `values` float32 on the device, by `names`."""

    step: int
    rate: float
    names: Sequence[str]
    values: Tensor

    def figures(self) -> dict[str, float]:
        """The losses, the learning rate and the step. Waits for the device."""
        losses = dict(zip(self.names, self.values.tolist(), strict=True))
        return {f"{name}_loss": loss for name, loss in losses.items()} | {
            "rate": self.rate,
            "step": self.step,
        }
