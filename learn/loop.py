"""The loop of training: steps one after another, checkpoints, and figures that nothing waits for."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from . import checkpoints
from .distributed import rank, world
from .run_folder import append_log

Callback = Callable[[dict[str, float]], None]


class Taken(Protocol):
    """A step that was taken."""

    @property
    def step(self) -> int:
        """Its number, from 1."""
        ...

    def figures(self) -> dict[str, float]:
        """Its losses and what else there is to log, with `step`. Waits for the device."""
        ...


class Loop(ABC):
    """A run: `step` steps are done; `folder` holds checkpoints and log.

    Figures are read every `report_every` steps.
    """

    report_every = 1
    reads_behind = True
    """Whether figures of a step are read while the next one is computed, so that the GPU is never without
    work."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.checkpoints, self.step = folder, folder / "checkpoints", 0
        self.rank, self.world = rank(), world()
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def is_done(self) -> bool:
        """Whether the last step was taken."""

    @abstractmethod
    def is_due(self) -> bool:
        """Whether a checkpoint is to be written, before the last step."""

    @abstractmethod
    def take_step(self, prepared: Any) -> Taken:
        """Take a step with what was prepared for it, and count it."""

    @abstractmethod
    def save(self) -> None:
        """Write the checkpoint of this step."""

    @abstractmethod
    def load(self, path: Path) -> None:
        """Load a checkpoint."""

    def prepare(self, step: int) -> Any:
        """What a step needs from the host, made while the one before it is computed."""
        return None

    def resume(self) -> int:
        """Load the last checkpoint, if there is one; returns the number of steps that are done."""
        if found := checkpoints.latest(self.checkpoints):
            self.step = found[0]
            self.load(found[1])
        return self.step

    def run(
        self,
        callback: Callback = lambda figures: None,
        pause: Callable[[], None] = lambda: None,
        pause_every: int = 0,
    ) -> None:
        """Train to the last step. `callback` gets a step's figures, which are also a line of `log.jsonl`, on
        the first process alone.

        Every process calls `pause` after each `pause_every` steps and the last, before the next is computed.
        """
        with ThreadPoolExecutor(1) as loader:
            following = loader.submit(self.prepare, self.step)
            unread, start, done = None, time.perf_counter(), self.is_done()
            while not done:
                prepared = following.result()
                following = loader.submit(self.prepare, self.step + 1)
                taken = self.take_step(prepared)
                done = self.is_done()
                is_saved = done or self.is_due()
                pauses = pause_every > 0 and (done or self.step % pause_every == 0)
                stops = is_saved or pauses or not self.reads_behind
                reported = stops or self.step % self.report_every == 0
                for step in filter(None, (unread, taken if stops else None)):
                    seconds, start = time.perf_counter() - start, time.perf_counter()
                    self._report(step, seconds, callback)
                unread = taken if reported and not stops else None
                if pauses:
                    pause()
                if is_saved:
                    self.save()

    def _report(self, taken: Taken, seconds: float, callback: Callback) -> None:
        figures = taken.figures() | {"seconds": round(seconds, 4)}
        if self.rank == 0:
            append_log(self.folder, figures)
            callback(figures)
