"""A detector's verdict: 1 for a picture that shows what its prompt says by GenEval's rules, else 0."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...eval.geneval.detectors import ShapesDetector, make_detector
from ...eval.geneval.scoring import score_row
from ..distributed import world

_ONE_PROCESS = 32
"""Most pictures for which the exact detector of shapes gets no processes of its own."""


class DetectorReward:
    """GenEval's scorer with one of its detectors; the prompts are rows of GenEval's metadata.

    The exact detector of the world of shapes runs on the CPU, in `workers` processes where there is more.
    """

    def __init__(
        self,
        kind: str,
        weights: str | Path | None = None,
        clip: str | Path | None = None,
        device: str | None = None,
        workers: int | None = None,
    ) -> None:
        self.detector = make_detector(kind, weights, clip, None if kind == "shapes" else device)
        self.workers = max(1, (os.cpu_count() or 1) // world()) if workers is None else workers
        self._pool: Executor | None = None

    def check(self, prompt: Mapping[str, Any]) -> None:
        """Raise `BifronsError` for a prompt that can't be scored."""
        score_row(_row(prompt, {"boxes": {}, "colors": {}}))

    def __call__(self, prompts: Sequence[Mapping[str, Any]], outputs: Sequence[Image.Image]) -> list[float]:
        """1 for each picture that is right, 0 for the others."""
        if isinstance(self.detector, ShapesDetector) and self.workers > 1 and len(outputs) > _ONE_PROCESS:
            if self._pool is None:
                # Forked children of a process that has used torch's threads can hang: start them afresh.
                self._pool = ProcessPoolExecutor(self.workers, get_context("spawn"), _one_thread)
            pool, chunk = self._pool, -(-len(outputs) // (4 * self.workers))
            found = list(pool.map(self.detector.detect, outputs, prompts, chunksize=chunk))
        else:
            found = [self.detector.detect(*one) for one in zip(outputs, prompts, strict=True)]
        rows = (_row(prompt, one) for prompt, one in zip(prompts, found, strict=True))
        return [float(score_row(row).correct) for row in rows]


def _one_thread() -> None:
    torch.set_num_threads(1)


def _row(prompt: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    return {"filename": str(prompt.get("prompt"))[:100], "metadata": dict(prompt), **found}
