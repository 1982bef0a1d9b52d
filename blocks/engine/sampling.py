"""What a generation is made with: a model's head, and how tokens are chosen from its logits.

N sequences, R rows of the decoder (N, or 2 N with guidance: rows 2 n and 2 n + 1 are sequence n with and
without its condition), D decoder width, V a head's vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from .sampling_params import Sampling, guide, narrow, penalize, race


@dataclass(frozen=True)
class TokenHead:
    """One kind of tokens: `embed` makes tokens `[m]` inputs `[m, D]`, `logits` hidden states `[m, V]`."""

    embed: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]

    @property
    def owner(self) -> nn.Module | None:
        """The model whose methods both are, if they are."""
        owners = [getattr(part, "__self__", None) for part in (self.embed, self.logits)]
        return owners[0] if owners[0] is owners[1] and isinstance(owners[0], nn.Module) else None


class SamplingMode(NamedTuple):
    """What of the choice decides which operations a step is made of."""

    guided: bool
    greedy: bool
    top_k: int
    nucleus: bool
    penalized: bool


class SamplingTensors(NamedTuple):
    """What of the choice are mere numbers; a captured step reads them from tensors `[1]`."""

    guidance: float | Tensor
    temperature: float | Tensor
    top_p: float | Tensor
    penalty: float | Tensor


@dataclass(frozen=True)
class Choosing:
    """How tokens are chosen; `guidance_scale=None` has no rows without condition."""

    sampling: Sampling
    guidance_scale: float | None = None
    repetition_penalty: float = 1.0

    @property
    def rows_each(self) -> int:
        return 1 if self.guidance_scale is None else 2

    @property
    def mode(self) -> SamplingMode:
        sampling, greedy = self.sampling, self.sampling.temperature == 0.0
        return SamplingMode(
            guided=self.guidance_scale is not None,
            greedy=greedy,
            top_k=0 if greedy else sampling.top_k,
            nucleus=not greedy and sampling.top_p < 1.0,
            penalized=self.repetition_penalty != 1.0,
        )

    @property
    def tensors(self) -> SamplingTensors:
        scale = 1.0 if self.guidance_scale is None else self.guidance_scale
        return SamplingTensors(scale, self.sampling.temperature, self.sampling.top_p, self.repetition_penalty)


def filtered(
    logits_RV: Tensor, mode: SamplingMode, tensors: SamplingTensors, seen_NV: Tensor | None
) -> Tensor:
    """Logits float32 `[N, V]` after guidance, penalty, temperature and filters, in this order."""
    logits = logits_RV.float()
    if mode.guided:
        cond, uncond = logits.unflatten(0, (-1, 2)).unbind(1)
        logits = guide(cond, uncond, tensors.guidance)
    if seen_NV is not None:
        logits = penalize(logits, seen_NV, tensors.penalty)
    if mode.greedy:
        return logits
    return narrow(logits, tensors.temperature, mode.top_k, tensors.top_p if mode.nucleus else 1.0)


def choose(
    logits_RV: Tensor,
    mode: SamplingMode,
    tensors: SamplingTensors,
    seeds_N: Tensor,
    steps_N: Tensor,
    seen_NV: Tensor | None,
) -> Tensor:
    """One token of every sequence, int64 `[N]`; it is marked in `seen`, the mask of what was there before."""
    logits = filtered(logits_RV, mode, tensors, seen_NV)
    tokens = logits.argmax(-1) if mode.greedy else race(logits, seeds_N, steps_N)
    if seen_NV is not None:
        seen_NV.scatter_(1, tokens[:, None], True)
    return tokens


def spread(x_ND: Tensor, mode: SamplingMode) -> Tensor:
    """Inputs of all rows `[R, D]`: both rows of a guided sequence get the same."""
    return x_ND[:, None].expand(-1, 2, -1).flatten(0, 1) if mode.guided else x_ND


def paired(first: Sequence[Tensor], second: Sequence[Tensor] | None) -> list[Tensor]:
    """Rows with and without condition in the order above."""
    if second is None:
        return list(first)
    return [row for pair in zip(first, second, strict=True) for row in pair]
