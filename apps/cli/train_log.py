"""Progress of training on stderr, and the run's figures for TensorBoard where it is installed."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...blocks.progress import progress_bar
from ...learn.distributed import rank

_SHOWN = {"image_loss": "image", "text_loss": "text", "reward": "reward", "kl": "kl"}


class TrainingLog:
    """The progress bar of a run, and `RUN/tensorboard`; a context manager."""

    def __init__(self, run: Path, steps: int, done: int) -> None:
        self.bar = progress_bar(steps, "training", " steps", initial=done)
        self.board: Any = None
        if rank() == 0 and find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(run / "tensorboard", purge_step=done + 1)

    def add(self, figures: Mapping[str, float]) -> None:
        """Show the figures of a step."""
        losses = {short: f"{figures[name]:.4f}" for name, short in _SHOWN.items() if name in figures}
        self.bar.set_postfix(losses, refresh=False)
        self.bar.update()
        if self.board is not None:
            for name, value in figures.items():
                if name != "step":
                    self.board.add_scalar(name, value, int(figures["step"]))

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        if self.board is not None:
            self.board.close()
