"""Workers on a Ray cluster: actors that run the same code as the processes of `local`.

They read models and the pictures that rows name by the same paths as here; what they make comes back through
Ray, so that the output folder need be on no other machine.
"""

import logging
import os
import signal
import socket
import time
import warnings
from collections.abc import Sequence
from typing import Any

from ..blocks.errors import BifronsError, OptionError, ResourceError, UnknownWordsWarning
from ..blocks.torch_threads import set_threads
from .dispatch import Event
from .rows import Row
from .tasks import Result, Task
from .worker import Worker

_CONNECT = 5.0
"""Seconds in which a cluster must answer."""
_PENDING = 300.0
"""Seconds in which the cluster must find room for at least one worker."""


class Actor:
    """A worker on a cluster; its methods are called by `RayPool`."""

    def pid(self) -> int:
        """The process's id; that it answers tells that the actor has found room."""
        return os.getpid()

    def open(self, task: Task, device: str, threads: int) -> str:
        """Load the model; returns why it can't be, or nothing."""
        warnings.simplefilter("ignore", UnknownWordsWarning)
        set_threads(threads)
        try:
            self._worker = Worker(task, device)
        except BifronsError as error:
            return str(error)
        return ""

    def results(self, rows: Sequence[Row]) -> list[Result]:
        """See `Worker.results`."""
        return self._worker.results(rows)


def connect(address: str) -> Any:
    """The package ray, connected to a cluster: `auto` for one that runs on this machine, or HOST:PORT.

    Raises OptionError for another address, and ResourceError where Ray isn't installed or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise ResourceError("--ray needs the package ray: pip install 'bifrons[scale]'") from error
    if ray.is_initialized():
        return ray
    if address != "auto":
        _check_port(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises several kinds
        reason = str(error).strip().splitlines()[0]
        raise ResourceError(
            f"no Ray cluster answers at {address}: {reason}; accepted: one started by `ray start --head`, "
            "with RAY_AUTH_MODE=token in the environment if it asks for a token"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # which Ray has replaced
    return ray


def _check_port(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise OptionError(f"ray is {address!r}; accepted: auto, or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT).close()
    except OSError as error:
        raise ResourceError(
            f"no Ray cluster answers at {address}: {error.strerror or error}; accepted: the address that "
            "`ray start --head` prints"
        ) from error


def cluster_workers(ray: Any) -> tuple[str, int]:
    """The device of workers, and how many there are by default: one a GPU, or without any one a node."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus:
        return "cuda", gpus
    return "cpu", max(1, sum(node["Alive"] for node in ray.nodes()))


class RayPool:
    """Actors of a cluster; see `dispatch.Pool`. device: `cuda`, of which each has its own, or `cpu`."""

    def __init__(self, ray: Any, task: Task, device: str, workers: int, threads: int) -> None:
        self._ray, self._arguments = ray, (ray.put(task), device, threads)
        options = {"num_gpus": 1 if device == "cuda" else 0, "num_cpus": 1, "max_concurrency": 2}
        self._kind = ray.remote(**options)(Actor)
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, tuple[int, str, int]] = {}
        """The worker, method and ticket of what is called for."""
        self.pids: dict[int, int] = {}
        """Process ids of the workers that have found room."""
        self._asked = time.monotonic()
        for worker in range(workers):
            self._start(worker)

    def _start(self, worker: int) -> None:
        self.pids.pop(worker, None)
        self._actors[worker] = self._kind.remote()
        self._call(worker, "pid")

    def _call(self, worker: int, method: str, *arguments: Any, ticket: int = -1) -> None:
        call = getattr(self._actors[worker], method).remote(*arguments)
        self._calls[call] = worker, method, ticket

    def send(self, worker: int, ticket: int, rows: Sequence[Row]) -> None:
        """See `dispatch.Pool`."""
        self._call(worker, "results", tuple(rows), ticket=ticket)

    def wait(self) -> list[Event]:
        """See `dispatch.Pool`. Raises ResourceError where no worker finds room for minutes."""
        while True:
            done, _ = self._ray.wait(list(self._calls), timeout=1.0)
            events = [event for call in done if (event := self._event(call)) is not None]
            if events:
                return events
            if self.pids:
                self._asked = time.monotonic()
            elif time.monotonic() > self._asked + _PENDING:
                raise ResourceError(
                    f"the Ray cluster had no room for a worker in {_PENDING:.0f} seconds; what is finished "
                    "stays: run the same command again once `ray status` shows free GPUs or CPUs"
                )

    def _event(self, call: Any) -> Event | None:
        """What a finished call tells; None where there is nothing to be told."""
        worker, method, ticket = self._calls.pop(call)
        try:
            value = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            return self._died(worker, error)
        if method == "pid":
            self.pids[worker] = value
            self._call(worker, "open", *self._arguments)
            return None
        if method == "open":
            return Event("refused", worker, text=value) if value else Event("ready", worker)
        return Event("done", worker, ticket, value)

    def _died(self, worker: int, error: Exception) -> Event:
        """Start another in the place of one that is gone, or can't be trusted any more."""
        self._calls = {call: one for call, one in self._calls.items() if one[0] != worker}
        self._ray.kill(self._actors[worker])
        self._start(worker)
        cause = getattr(error, "cause", None)
        reason = f"{type(cause).__name__}: {cause}" if cause is not None else "the loss of its process"
        return Event("died", worker, text=f"was ended by {reason}")

    def close(self) -> None:
        """End all actors, and leave the cluster."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._ray.shutdown()
