"""Rows kept out of training, and the loss on them."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from .examples import Examples
from .losses import KINDS, TrainingModel, collate

MOST = 64
"""Rows of a source that are kept out at most: enough to see a loss change."""
Kind = TypeVar("Kind")


def split(rows: Sequence[Kind], share: float, seed: int) -> tuple[list[Kind], list[Kind]]:
    """The rows to train on and those kept out, both in order: a random `share`, at most `MOST`, and never
    all."""
    count = min(round(share * len(rows)), MOST, len(rows) - 1)
    generator = torch.Generator().manual_seed(seed)
    chosen = set(torch.randperm(len(rows), generator=generator)[: max(0, count)].tolist())
    out = [row for number, row in enumerate(rows) if number in chosen]
    return [row for number, row in enumerate(rows) if number not in chosen], out


@torch.no_grad()
def validation_loss(pipe: Any, sources: Sequence[Examples], rows_at_once: int) -> dict[str, float]:
    """The mean cross-entropy in nats of the rows' image codes and of their answers' tokens, whichever there
    are."""
    model, pad = TrainingModel(pipe.model), getattr(pipe.processor, "pad_id", 0)
    examples = [source[index] for source in sources for index in range(len(source))]
    sums, counts = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0)
    for start in range(0, len(examples), rows_at_once):
        part = examples[start : start + rows_at_once]
        batch = collate(part, pad, [False] * len(part))
        losses = model(batch)
        for kind in KINDS:
            sums[kind] += float(losses[kind])
            counts[kind] += batch.counts[kind]
    return {f"{kind}_loss": sums[kind] / counts[kind] for kind in KINDS if counts[kind]}
