"""A moving average of the weights of a model in training, which is better than any of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """The exponential moving average of the parameters of `module` that have `requires_grad`, as buffers.

    Of early weights it keeps less than `decay`, so that it forgets where training began.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._trained: list[Tensor] = []
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self._trained.append(parameter)
                self.register_buffer(name.replace(".", "/"), parameter.detach().clone())
        # A tensor, so that a captured step reads its current value.
        self._weight = torch.ones((), device=self._trained[0].device)

    def age(self, step: int) -> None:
        """Set how much the update of a step counts, from 0."""
        self._weight.fill_(1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights."""
        averages = list(self.buffers())
        change = list(torch._foreach_sub(self._trained, averages))
        torch._foreach_mul_(change, self._weight)
        torch._foreach_add_(averages, change)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module has the average for its weights: to be evaluated or saved."""
        with torch.no_grad():
            weights = [tensor.clone() for tensor in self._trained]
            torch._foreach_copy_(self._trained, list(self.buffers()))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._trained, weights)
