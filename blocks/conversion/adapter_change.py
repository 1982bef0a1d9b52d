"""What an adapter does to a model's parameters.

R rank, E experts; a weight has O outputs and I inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints.key_mapping import ParameterSlice
from ..vocabulary import Work


@dataclass(frozen=True)
class Change:
    """What is done to a slice of a parameter: the product of the factors B `[O, R]` and A `[R, I]`, times
    `scale`, is added, or `whole` replaces it. For stacked experts, factors have `E R` for R."""

    target: ParameterSlice
    factors: tuple[Tensor, Tensor] | None = None
    scale: float = 1.0
    whole: Tensor | None = None

    def factors_of(self, strength: float) -> tuple[Tensor, Tensor]:
        """A, and B times the scale and the strength, both in float32."""
        assert self.factors is not None
        b, a = (factor.float() for factor in self.factors)
        return a, b * (strength * self.scale)

    def factors_of_expert(
        self, expert: int, experts: int, outputs: int, strength: float
    ) -> tuple[Tensor, Tensor]:
        """`factors_of` for one of a stack of experts, `[R, I]` and `[O, R]`; of rank 0 if it is unchanged."""
        a, b = self.factors_of(strength)
        if not self.target.select:
            a, b = a.unflatten(0, (experts, -1))[expert], b.unflatten(1, (-1, experts))[..., expert]
        elif self.target.select != (expert,):
            a, b = a[:0], b[:, :0]
        if self.target.part is not None:
            index, parts = self.target.part
            size = outputs // parts
            b = F.pad(b, (0, 0, index * size, outputs - (index + 1) * size))
        return a, b

    def apply(self, weight: Tensor, strength: float) -> None:
        """Change `weight`, float32, in place; with `strength` 0 nothing changes, 1 is as it was trained."""
        part = weight[self.target.select] if self.target.select else weight
        if self.target.part is not None:
            index, count = self.target.part
            part = part.chunk(count)[index]
        if self.whole is not None:
            part.lerp_(self.whole.to(part).view_as(part), strength)
            return
        assert self.factors is not None
        b, a = (factor.to(part) for factor in self.factors)
        if part.ndim == 2:
            part += strength * self.scale * (b @ a)
            return
        experts = len(part)  # PEFT stacks the experts' A over the rows, and interleaves the columns of B
        products = torch.einsum("ore,eri->eoi", b.unflatten(1, (-1, experts)), a.unflatten(0, (experts, -1)))
        part += strength * self.scale * products


@dataclass(frozen=True)
class Adapter:
    """An adapter: the changes of each parameter, by its name."""

    folder: Path
    base: str
    """The name of the model that it was trained on, as its maker knew it."""
    changes: Mapping[str, tuple[Change, ...]]
    fingerprint: str
    """16 hexadecimal digits that tell its files from those of others."""
    words: Mapping[Work, frozenset[str]] = field(default_factory=dict)
    """Those that it was taught, by kind of work."""

    def apply(self, name: str, weight: Tensor, strength: float) -> None:
        """Change a parameter, in float32, in place."""
        for change in self.changes.get(name, ()):
            change.apply(weight, strength)
