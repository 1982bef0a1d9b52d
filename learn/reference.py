"""A model as it was before training."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .losses import Batch, TrainingModel


class Reference:
    """What `module` said before it was trained: by a copy of the model, or, where its trained parameters are
    few, an adapter's, by their values as they are now."""

    def __init__(self, module: TrainingModel, before: nn.Module | None) -> None:
        self.module = module if before is None else TrainingModel(before)
        trained = () if before is not None else module.parameters()
        self._values = [(p, p.detach().clone()) for p in trained if p.requires_grad]

    @torch.no_grad()
    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits `[N, V]` that predicted the learned tokens `[N]` of a batch with one loss, and these."""
        with self._as_before():
            return logits_of(self.module, batch)

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        values = [parameter.data for parameter, _ in self._values]
        for parameter, before in self._values:
            parameter.data = before
        try:
            yield
        finally:
            for (parameter, _), value in zip(self._values, values, strict=True):
                parameter.data = value


def logits_of(module: TrainingModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits `[N, V]` that predict the learned tokens `[N]` of a batch with one loss, and these."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # never written to
        (found,) = module.logits(batch).values()
    return found


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of a model as it is, which shares what is never trained: vision encoder and image tokenizer."""
    shared = [getattr(model, name, None) for name in ("vision_model", "vision", "gen_vision_model")]
    memo = {id(module): module for module in shared if isinstance(module, nn.Module)}
    return copy.deepcopy(model, memo).requires_grad_(False).eval()
