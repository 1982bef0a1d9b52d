"""The training loop of the recipes: by the clock, restartable, and on CUDA one captured graph a step.

The models are so small that launching the kernels of a step one by one takes several times as long as running
them. So a step is made of tensor operations only, reads its rate of learning from a tensor, and is captured.
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
"""Seconds between saved states."""


@dataclass(frozen=True)
class RunConfig:
    """How a recipe runs: `seconds` of training in all, within `wall` seconds of this call's own time."""

    folder: Path
    seconds: float
    wall: float = 1e9
    seed: int = 0
    device: str = "cpu"
    graph: bool = True
    peak_lr: float | None = None
    """Of learning; None is the recipe's own."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser, folder: str, seconds: float) -> None:
        parser.add_argument("--folder", type=Path, default=Path(folder), help="inputs, state and result")
        parser.add_argument("--seconds", type=float, default=seconds, help="of training, over all restarts")
        parser.add_argument(
            "--wall", type=float, default=1e9, help="seconds for everything; shortens the schedule"
        )
        parser.add_argument("--no-graph", action="store_true", help="launch every kernel by itself")
        parser.add_argument("--peak-rate", type=float, help="of learning; the recipe's own by default")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")

    @classmethod
    def of(cls, args: argparse.Namespace) -> "RunConfig":
        graph = not args.no_graph
        return cls(args.folder, args.seconds, args.wall, args.seed, args.device, graph, args.peak_rate)


class Trainer(Generic[M]):
    """A recipe gives `losses`, and `export` where more than the weights in bfloat16 is to be written."""

    name: ClassVar[str]
    weights: ClassVar[dict[str, float]] = {}
    """Of the losses in their sum; 1 where none is given."""
    peak_lr: ClassVar[float]

    def __init__(self, run: RunConfig) -> None:
        self.run_config, self.folder, self.device, self.step = run, run.folder, run.device, 0
        self.began = time.monotonic()
        torch.manual_seed(run.seed)
        torch.set_float32_matmul_precision("high")

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:.0f}s: {text}", flush=True)

    def learn(self, model: M, learned: nn.Module | None = None, compiled: Iterable[nn.Module] = ()) -> None:
        """Take `model` to be trained, of it the parameters of `learned`; `compiled` are compiled on CUDA."""
        self.model, self.learned, self.compiled = model, learned or model, list(compiled)
        self.average = Average(model)
        self.rate = torch.zeros((), device=self.device)
        matrices, rest = split_parameters(self.learned)
        cuda = self.device == "cuda"
        adam = torch.optim.AdamW(
            rest, self.rate, betas=(0.9, 0.95), weight_decay=0.01, capturable=cuda, foreach=cuda
        )
        self.optimizers: list[torch.optim.Optimizer] = [Muon(matrices, self.rate), adam]
        self.clock = Clock(self.run_config.seconds)

    def losses(self) -> dict[str, Tensor]:
        """The losses of the next step, from data that this draws itself."""
        raise NotImplementedError

    def update(self) -> dict[str, Tensor]:
        """One step of training in tensor operations only."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        losses = self.losses()
        torch.stack(
            [self.weights.get(k, 1.0) * v for k, v in losses.items() if v.requires_grad]
        ).sum().backward()
        params: list[Tensor] = [
            p for o in self.optimizers for group in o.param_groups for p in group["params"]
        ]
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update(self.model)
        return {k: v.detach() for k, v in losses.items()}

    def prepare(self) -> Callable[[], dict[str, Tensor]]:
        """Compile and capture `update`; what the rehearsal changed is put back."""
        if self.device != "cuda":
            self.update()  # makes the optimisers' state, which `resume` fills; at a rate of zero
            return self.update
        for module in self.compiled:
            module.compile(dynamic=False)
        before = [p.detach().clone() for p in self.model.parameters()]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.update()
        torch.cuda.current_stream().wait_stream(side)
        if not self.run_config.graph:
            self.restore(before)
            return self.update
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            shown = self.update()
        self.restore(before)

        def replay() -> dict[str, Tensor]:
            graph.replay()
            return shown

        return replay

    @torch.no_grad()
    def restore(self, weights: Sequence[Tensor]) -> None:
        """Weights, their average and the optimisers as they were before a rehearsal."""
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
        """Go on from the saved state, copied into the tensors that a captured step works on."""
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
        """Write the averaged weights as a checkpoint."""
        weights = {k: v.to(torch.bfloat16).contiguous() for k, v in self.average.model.state_dict().items()}
        save_file(weights, self.folder / "model.safetensors", {"format": "pt"})

    def run(self) -> None:
        peak_lr = self.run_config.peak_lr or self.peak_lr
        step = self.prepare()
        self.resume()
        torch.manual_seed(self.run_config.seed + 1000 * self.step)
        self.clock.started = saved = time.monotonic()
        left = self.run_config.wall - (saved - self.began)
        self.clock.seconds = min(self.clock.seconds, self.clock.spent + left)
        self.say(f"ready to train for {self.clock.seconds - self.clock.spent:.0f}s")
        while self.clock.progress < 1:
            self.rate.fill_(self.clock.learning_rate(peak_lr))
            self.average.age(self.step)
            shown = step()
            self.step += 1
            if self.step % 10 == 0:
                now = " ".join(f"{k} {v.item():.4f}" for k, v in shown.items())  # waits: the clock is true
                if self.step % 200 == 0 or self.device == "cpu":
                    self.say(f"step {self.step} {now}")
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        self.save()
        self.say(f"{self.step} steps done")


def initialise(model: nn.Module, depth: int, skip: str | None = None) -> None:
    """Fresh weights: matrices normal with 0.02, those that end a block's branch scaled down by the number of
    branches, 2 x `depth` (GPT-2); what sees pixels by its inputs; biases zero. Parameters below `skip` stay.
    """
    ends = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight", "experts.down")
    for name, param in model.named_parameters():
        if skip is not None and name.startswith(skip):
            continue
        if name.endswith("patch_embed.proj.weight"):
            nn.init.normal_(param, std=param[0].numel() ** -0.5)
        elif param.ndim >= 2:
            nn.init.normal_(param, std=0.02 / (2 * depth) ** 0.5 if name.endswith(ends) else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(param)
