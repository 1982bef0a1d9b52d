"""A small objective of pretraining, for one process and for several."""

from pathlib import Path

import torch
import torch.nn.functional as F
from bifrons.learn.distributed import rank, world
from bifrons.learn.pretraining import Objective, Pretraining, PretrainingOptions
from torch import Tensor, nn


class Halving(Objective):
    """A small block learns to halve what it is given: fixed rows, of which each process takes its share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.norm = nn.LayerNorm(8)
        self.loss_weights = {"size": 0.0}
        self.rows = torch.randn(32, 8)

    def losses(self) -> dict[str, Tensor]:
        x = self.rows[rank() :: world()]
        y = self.layers[1](self.norm(self.layers[0](x)))
        return {"error": F.mse_loss(y, x / 2), "size": y.abs().mean()}


def pretrain(folder: Path) -> Halving:
    """Train for 20 steps."""
    objective = Halving()
    run = Pretraining(objective, PretrainingOptions(0.02, steps=20, report_every=1), folder)
    run.run()
    return objective
