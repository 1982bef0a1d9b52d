"""What models of both families are pretrained on: tasks, each of which draws batches on the device.

N tokens of a batch, E experts, K experts per token.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks.model.moe import Experts
from .losses import Batch, TrainingModel
from .pretraining import Objective


@dataclass(frozen=True)
class Task:
    """A loss: the mean over the learned tokens of the batches that `draw` makes, in tensor operations, times
    `weight`."""

    draw: Callable[[], Batch]
    weight: float = 1.0


class ModelObjective(Objective):
    """A model of either family, and its tasks by name.

    All its weights are trained but the image tokenizer's. They are float32; products are computed in `dtype`.
    """

    def __init__(
        self,
        model: Any,
        tasks: Mapping[str, Task],
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__()
        self.tasks, self.dtype = tasks, dtype
        self.training_model = TrainingModel(model.requires_grad_(True).train())
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith("gen_vision_model."))
        compute_all_experts(model)
        self.loss_weights = {name: task.weight for name, task in tasks.items()}

    @property
    def model(self) -> Any:
        """The model in training."""
        return self.training_model.model

    def compiled(self) -> Iterable[nn.Module]:
        return self.model.decoder.layers

    def losses(self) -> dict[str, Tensor]:
        found = {}
        with torch.autocast(self.model.decoder.device.type, self.dtype, cache_enabled=False):
            for name, task in self.tasks.items():
                found[name] = self._loss(task.draw())
        return found

    def _loss(self, batch: Batch) -> Tensor:
        losses = self.training_model(batch)
        if batch.codes is not None:
            return losses["image"] / batch.codes.numel()
        assert batch.targets is not None
        return losses["text"] / (batch.targets >= 0).sum()


def compute_all_experts(model: nn.Module) -> None:
    """Have a model's experts compute every token, as captured steps need it."""
    for module in model.modules():
        if isinstance(module, Experts):
            module.dense = True


def balance_loss(scores_NE: Tensor, experts_NK: Tensor) -> Tensor:
    """E times the sum over a layer's experts of the share of tokens routed to the expert times its mean score
    (Fedus et al. 2021, "Switch Transformers", eq. 4): 1 for perfect balance."""
    load_E = F.one_hot(experts_NK, scores_NE.shape[1]).float().mean((0, 1))
    return scores_NE.shape[1] * (load_E * scores_NE.mean(0)).sum()
