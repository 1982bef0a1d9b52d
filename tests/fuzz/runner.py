"""Runs the cases of one kind in worker processes with limits of memory and time, and counts the outcomes.

A worker is forked from this process, in which everything is imported already, and runs one case after the
other. One that ends, exceeds the time or eats memory costs only itself: the case that it was running is the
one to blame, and a new worker goes on.
"""

import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

from cases import ACCEPTED, BUILT, CRASH, FAULTS, HANG, MEMORY, READY, Kind, Outcome, work

_FORK = multiprocessing.get_context("fork")
_SETTING_UP = 90.0
"""Seconds that a worker may take to start, or to build a case."""


@dataclass
class Tally:
    """The outcomes of a kind."""

    kind: str
    counts: dict[str, int] = field(default_factory=dict)
    faults: list[Outcome] = field(default_factory=list)
    slowest: Outcome = field(default_factory=lambda: Outcome(-1, ACCEPTED))
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count one more."""
        self.counts[outcome.status] = self.counts.get(outcome.status, 0) + 1
        self.slowest = max(self.slowest, outcome, key=lambda o: o.seconds)
        if outcome.status in FAULTS:
            self.faults.append(outcome)


def run_kind(
    kind: Kind, seed: int, indices: Iterator[int], keep: Path, workers: int, end: float = float("inf")
) -> Tally:
    """Run the cases until there are no more, or until the time `end` of the monotonic clock.

    The folders of cases with a fault are moved to `keep`.
    """
    kind.prepare()
    tally, began = Tally(kind.name), time.monotonic()
    keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="running-", dir=keep, ignore_cleanup_errors=True) as scratch:
        running = [_Worker(kind, seed, Path(scratch) / str(number)) for number in range(workers)]
        try:
            while busy := [worker for worker in running if worker.give(indices, end)]:
                wait([worker.pipe for worker in busy], timeout=0.2)
                for outcome in filter(None, (worker.outcome() for worker in busy)):
                    tally.add(outcome)
                    if outcome.status in FAULTS:
                        _save(kind, seed, outcome, Path(scratch), keep)
        finally:
            for worker in running:
                worker.kill()
    tally.seconds = time.monotonic() - began
    return tally


def _save(kind: Kind, seed: int, outcome: Outcome, scratch: Path, keep: Path) -> None:
    target = keep / f"{kind.name}-{seed}-{outcome.index}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    (target / "fault.txt").write_text(f"{outcome.status}\n{outcome.detail}\n", errors="backslashreplace")
    for folder in scratch.glob(f"*/{outcome.index}"):
        with suppress(OSError):
            folder.rename(target / "case")


class _Worker:
    """A process that runs cases, replaced by a new one after a fault and now and then."""

    def __init__(self, kind: Kind, seed: int, folder: Path) -> None:
        self.kind, self.seed, self.folder = kind, seed, folder
        folder.mkdir()
        self.log = folder / "stderr"
        self.index: int | None = None
        self._fork()

    def _fork(self) -> None:
        self.pipe, other = _FORK.Pipe()
        self.process = _FORK.Process(target=work, args=(self.kind, self.seed, self.folder, self.log, other))
        self.process.start()
        other.close()
        self.done = 0
        if not self.pipe.poll(_SETTING_UP) or self.pipe.recv() != READY:
            raise RuntimeError(f"a worker of the kind {self.kind.name} does not start: {self._log()}")

    def give(self, indices: Iterator[int], end: float) -> bool:
        """Give the worker a case if it has none; false if there are no more."""
        if self.index is None:
            index = next(indices, None) if time.monotonic() < end else None
            if index is None:
                return False
            if self.done == self.kind.cases_a_worker:
                self.kill()
                self._fork()
            self.pipe.send(index)
            self.index, self.began, self.seconds = index, time.monotonic(), _SETTING_UP
        return True

    def outcome(self) -> Outcome | None:
        """The outcome of the running case, or None if it goes on."""
        message: Outcome | str | None = None
        try:
            if self.pipe.poll():
                message = self.pipe.recv()
        except (EOFError, OSError):
            message = self._ended()
        if message == BUILT:
            self.began, self.seconds = time.monotonic(), self.kind.seconds
        elif message is None and time.monotonic() > self.began + self.seconds:
            message = self._replaced(HANG, "no end", self._stack())
        if not isinstance(message, Outcome):
            return None
        self.index, self.done = None, self.done + 1
        return message

    def _ended(self) -> Outcome:
        self.process.join()
        text, code = self._log(), self.process.exitcode or 0
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        memory = "memory allocation of" in text or "bad_alloc" in text
        return self._replaced(MEMORY if memory else CRASH, name, text)

    def _replaced(self, status: str, reason: str, text: str) -> Outcome:
        """Replace the process; `text` is what it wrote to stderr."""
        assert self.index is not None
        seconds = time.monotonic() - self.began
        self.kill()
        self._fork()
        start = text.rfind("Current thread")  # the innermost calls come first
        calls = text[start:].partition("tests/fuzz")[0] if start >= 0 else text[-1500:]
        frames = [line.strip() for line in calls.splitlines() if line.startswith("  File")]
        ours = [frame for frame in frames if "/bifrons/" in frame]
        key = f"{status}: {reason} {(*frames[:1], *ours[:1])}"
        return Outcome(self.index, status, f"{reason} after {seconds:.0f} s\n{calls}", key, seconds)

    def _stack(self) -> str:
        """What the worker is doing now."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, signal.SIGUSR1)
            time.sleep(0.3)
        return self._log()

    def _log(self) -> str:
        return self.log.read_text(errors="backslashreplace")[-20_000:]

    def kill(self) -> None:
        """End the process and all that it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.pipe.close()
