"""What a worker does: it builds cases of a kind and reads them, within limits of memory."""

import faulthandler
import os
import random
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bifrons.blocks.errors import BifronsError

ACCEPTED, REFUSED = "accepted", "refused"
CRASH, TRACEBACK, HANG, MEMORY = "crash", "traceback", "hang", "over memory"
FAULTS = (CRASH, TRACEBACK, HANG, MEMORY)

READY, BUILT = "ready", "built"
"""What a worker says when it has started, and before it reads a case."""

ADDRESS_SPACE = 4 << 30
"""Bytes of address space that a case may take beyond those of the worker."""


class Broken(Exception):
    """Anything that must not happen, found by the reader of a kind; `status` is one of `FAULTS`."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status


def nothing() -> None:
    """What kinds need not do."""


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    `build` writes a case into an empty folder, and `read` gives what it returns to the project; only that is
    limited. `prepare` is called once before, and `start` once in each worker. `memory`: MB that a case may
    add to what is resident.
    """

    name: str
    build: Callable[[random.Random, Path], Any]
    read: Callable[[Any], None]
    prepare: Callable[[], None] = nothing
    start: Callable[[], None] = nothing
    memory: int = 1000
    seconds: float = 20.0
    cases_a_worker: int = 250


@dataclass(frozen=True)
class Outcome:
    """What came of a case; `key` is equal for faults that are probably the same."""

    index: int
    status: str
    detail: str = ""
    key: str = ""
    seconds: float = 0.0


def work(kind: Kind, seed: int, folder: Path, log: Path, pipe: Connection) -> None:
    """The life of a worker: it gets indices through the pipe, and sends outcomes."""
    os.setsid()
    with log.open("wb") as stream:
        os.dup2(stream.fileno(), 2)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    kind.start()
    limit = _memory("VmSize") * 1024 + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send(READY)
    while True:
        index = pipe.recv()
        os.truncate(log, 0)
        case = folder / str(index)
        case.mkdir()
        outcome = run_case(kind, seed, index, case, lambda: pipe.send(BUILT))
        if outcome.status not in FAULTS:
            shutil.rmtree(case, ignore_errors=True)
        pipe.send(outcome)


def run_case(kind: Kind, seed: int, index: int, folder: Path, built: Callable[[], None]) -> Outcome:
    """Build and read one case in this process; `built` is called in between."""
    case = kind.build(random.Random(f"{kind.name} {seed} {index}"), folder)
    built()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of resident memory
    before, began, error = _memory("VmRSS"), time.monotonic(), None
    try:
        kind.read(case)
        status = ACCEPTED
    except BifronsError as refusal:
        status, error = REFUSED, refusal
    except Broken as broken:
        status, error = broken.status, broken
    except BaseException as other:
        status, error = TRACEBACK, other
    seconds, grown = time.monotonic() - began, (_memory("VmHWM") - before) // 1000
    if any(isinstance(cause, MemoryError) for cause in _chain(error)):
        status = MEMORY
    detail = "" if error is None else "".join(traceback.format_exception(error))[-4000:]
    key = f"{status}: {_place(error)}"
    if grown > kind.memory and status not in FAULTS:
        status, key = MEMORY, f"{grown} MB after {status}"
        detail = f"{grown} MB\n{detail}"
    return Outcome(index, status, detail, key, seconds)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _place(error: BaseException | None) -> str:
    """The type of an exception and the last two places of its traceback."""
    if error is None:
        return ""
    if isinstance(error, Broken):
        return str(error)[:50]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "bifrons" in frame.filename and "tests" not in frame.filename]
    places = [f"{Path(frame.filename).name}:{frame.name}" for frame in (*ours[-1:], *frames[-1:])]
    return f"{type(error).__name__} in {' < '.join(dict.fromkeys(places))}"


def _memory(name: str) -> int:
    """A size in kB from the kernel's status of this process."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0])
