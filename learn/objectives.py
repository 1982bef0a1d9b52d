"""What models of both families are pretrained on: tasks, each of which draws batches on the device.

N tokens of a batch, E experts, K experts per token, P pictures, T tokens of a picture, C codes.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks.model.moe import Experts, Gate
from ..blocks.sampling.sampling import filter_logits
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
    `balance` is the weight of the loss that has experts used alike, for models with experts. With `nucleus`,
    painting is learned from the model's own distribution when training began, in its nucleus of that
    probability; see `nucleus_loss`.
    """

    def __init__(
        self,
        model: Any,
        tasks: Mapping[str, Task],
        dtype: torch.dtype = torch.bfloat16,
        balance: float = 0.0,
        nucleus: float | None = None,
    ) -> None:
        super().__init__()
        self.tasks, self.dtype, self.nucleus = tasks, dtype, nucleus
        self.training_model = TrainingModel(model.requires_grad_(True).train())
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith("gen_vision_model."))
        compute_all_experts(model)
        self.balance = BalanceLoss(model) if balance else None
        self.loss_weights = {name: task.weight for name, task in tasks.items()} | {"balance": balance}
        teacher = TrainingModel(copy.deepcopy(model).requires_grad_(False)) if nucleus else None
        self._teacher = [teacher] if teacher else []  # in a list: checkpoints needn't hold it

    @property
    def model(self) -> Any:
        """The model in training."""
        return self.training_model.model

    def compiled(self) -> Iterable[nn.Module]:
        return [layer for one in (self.training_model, *self._teacher) for layer in one.model.decoder.layers]

    def losses(self) -> dict[str, Tensor]:
        found = {}
        with torch.autocast(self.model.decoder.device.type, self.dtype, cache_enabled=False):
            for name, task in self.tasks.items():
                found[name] = self._loss(task.draw())
            if self.balance is not None:
                found["balance"] = self.balance.take()
        return found

    def _loss(self, batch: Batch) -> Tensor:
        if batch.codes is not None and self._teacher:
            assert self.nucleus is not None
            assert batch.dropped is not None
            logits_NC, codes_N = self.training_model.logits(batch)["image"]
            with torch.no_grad():
                teacher_NC, _ = self._teacher[0].logits(batch)["image"]
            dropped_N = batch.dropped.repeat_interleave(batch.codes.shape[1])
            return nucleus_loss(logits_NC.float(), teacher_NC.float(), codes_N, dropped_N, self.nucleus)
        losses = self.training_model(batch)
        if batch.codes is not None:
            return losses["image"] / batch.codes.numel()
        assert batch.targets is not None
        return losses["text"] / (batch.targets >= 0).sum()


def nucleus_loss(
    logits_NC: Tensor, teacher_NC: Tensor, codes_N: Tensor, dropped_N: Tensor, top_p: float
) -> Tensor:
    """Mean cross-entropy with the nucleus of the teacher's distribution (Holtzman et al. 2020, arXiv
    1904.09751), or where the prompt was dropped with the codes.

    Of the many codes of a picture some would be sampled from the tail, and a single one can spoil it.
    Guidance subtracts the unconditional logits, so codes missing from those would be amplified.
    """
    log_probs_NC = logits_NC.log_softmax(-1)
    one_N = teacher_NC.new_ones(len(teacher_NC))
    nucleus_NC = filter_logits(teacher_NC, one_N, one_N.long() * 0, one_N * top_p, one_N * 0).softmax(-1)
    nucleus_loss_N = -(nucleus_NC * log_probs_NC).sum(-1)
    code_loss_N = -log_probs_NC.gather(-1, codes_N[:, None])[:, 0]
    return torch.where(dropped_N, code_loss_N, nucleus_loss_N).mean()


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


class BalanceLoss:
    """Has the experts of a model used alike, collected by hooks of its routers."""

    def __init__(self, model: nn.Module) -> None:
        self.losses: list[Tensor] = []
        self.gates = [module for module in model.modules() if isinstance(module, Gate)]
        for gate in self.gates:
            gate.register_forward_hook(self._collect)

    def _collect(self, gate: Gate, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        self.losses.append(balance_loss(gate.scores(inputs[0]), output[0]))

    def take(self) -> Tensor:
        """The mean loss of the layers run since the last call."""
        loss = torch.stack(self.losses).mean()
        self.losses.clear()
        return loss
