"""Replicas and the server before them, deployed by Ray Serve: `bifrons serve --ray`, or

serve run bifrons.scale.serve.app:app model=janus-nano replicas=1:4
"""

import logging
import os
import re
import signal
import socket
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ...apps.notes import note
from ...apps.server import app as server
from ...apps.server.limits import ServerOptions
from ...apps.server.middleware import read_keys
from ...apps.server.setup import ServerSetup
from ...blocks.checkpoints.hub import open_model
from ...blocks.errors import OptionError, ResourceError, printable
from ..ray_pool import cluster_workers, connect
from .front import Front
from .replica import Replica

_ROWS = {"cuda": 256, "cpu": 32}
_DRAIN = 600.0
"""Seconds in which a replica that is replaced may finish what it works on."""
_FAILURES = 3
"""Times that loading a model may fail."""
_PERIOD = 1.0
_CLOSING = 60.0
"""Seconds that ending the replicas may take."""
_MAX_REPLICAS = 1024


@dataclass(frozen=True)
class Replicas:
    """How many replicas there are: as many as requests need, from `least` to `most`."""

    least: int = 1
    most: int = 1


def parse_replicas(text: str) -> Replicas:
    """`N` or `MIN:MAX`. Raises `OptionError`."""
    found = re.fullmatch(r"(\d{1,4})(?::(\d{1,4}))?", text)
    accepted = f"N, or MIN:MAX, from 1 to {_MAX_REPLICAS}"
    if found is None:
        raise OptionError(f"replicas is {text!r}; accepted: {accepted}")
    least, most = int(found[1]), int(found[2] or found[1])
    if not 1 <= least <= most <= _MAX_REPLICAS:
        raise OptionError(f"replicas is {text!r}; accepted: {accepted}")
    return Replicas(least, most)


class Arguments(BaseModel):
    """What `app` takes from `serve run` or a file of `serve deploy`. limits: fields of `ServerOptions`."""

    model_config = ConfigDict(extra="forbid")

    model: str | list[str]
    replicas: str = "1"
    dtype: str | None = None
    quantize: str | None = None
    tensor_parallel: int | None = None
    threads: int | None = None
    warm_up: bool = True
    api_key_file: str | None = None
    limits: dict[str, Any] = {}


def app(arguments: Arguments) -> Any:
    """The application with HTTP by Ray Serve's own proxies, for `serve run` and `serve deploy`."""
    from ray import serve

    keys = None if arguments.api_key_file is None else read_keys(Path(arguments.api_key_file))
    models = [arguments.model] if isinstance(arguments.model, str) else arguments.model
    given = arguments.model_dump(include={"dtype", "quantize", "tensor_parallel"})
    loading = {"device": None, **given}
    options = ServerOptions(**arguments.limits)
    setup = ServerSetup(tuple(models), options, (), loading, arguments.threads, arguments.warm_up)
    device = cluster_workers(connect("auto"))[0]

    def build() -> Front:
        name = serve.get_replica_context().app_name
        return Front(serve.get_deployment_handle("Replica", name), Count(name), setup, keys)

    replicas = deployment(setup, parse_replicas(arguments.replicas), device, False)
    front = serve.deployment(serve.ingress(build)(), name="Front", max_ongoing_requests=2048)
    return front.bind(replicas)


def deployment(setup: ServerSetup, replicas: Replicas, device: str, surge: bool) -> Any:
    """The replicas as an application of Ray Serve. surge: whether there is room for one more, so that none
    must end before another takes its place."""
    from ray import serve

    setup = portable(setup, device)
    rows = setup.options.rows or _ROWS[device]
    number: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.least < replicas.most:
        scaling = {"min_replicas": replicas.least, "max_replicas": replicas.most}
        number = {"autoscaling_config": {**scaling, "target_ongoing_requests": max(1, rows // 2)}}
    return serve.deployment(
        Replica,
        name="Replica",
        ray_actor_options=resources(setup, device),
        max_ongoing_requests=rows,
        max_queued_requests=max(1, setup.options.max_queue),
        max_constructor_retry_count=_FAILURES,
        max_surge_percent=1 if surge else 0,
        health_check_period_s=2.0,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=_DRAIN,
        **number,
    ).bind(setup)


def resources(setup: ServerSetup, device: str) -> dict[str, int]:
    """What a replica takes of the cluster, in Ray's names."""
    gpus = (setup.loading.get("tensor_parallel") or 1) if device == "cuda" else 0
    return {"num_gpus": gpus, "num_cpus": setup.threads or 1}


def portable(setup: ServerSetup, device: str) -> ServerSetup:
    """The setup for processes with other current folders, whose device is theirs alone."""
    models = tuple(os.path.abspath(m) if os.path.isdir(m) else m for m in setup.models)
    adapters = tuple(replace(one, folder=one.folder.absolute()) for one in setup.adapters)
    return replace(setup, models=models, adapters=adapters, loading={**setup.loading, "device": device})


class Count:
    """How many replicas of an application run, asked at most once a second; -1 if they can't be started."""

    def __init__(self, name: str) -> None:
        self._name, self._lock = name, threading.Lock()
        self._asked, self._count = float("-inf"), 0

    def __call__(self) -> int:
        with self._lock:
            if time.monotonic() > self._asked + _PERIOD:
                self._count, self._asked = self._ask(), time.monotonic()
            return self._count

    def _ask(self) -> int:
        from ray import serve

        status = serve.status().applications.get(self._name)
        replicas = status.deployments.get("Replica") if status else None
        states: dict[Any, int] = replicas.replica_states if replicas else {}
        running = states.get("RUNNING", 0)
        return running or (-1 if status and status.status == "DEPLOY_FAILED" else 0)


class Cluster:
    """A server's replicas on a Ray cluster, under a name of its own."""

    def __init__(self, address: str, setup: ServerSetup, replicas: Replicas, name: str) -> None:
        """Connect; starts nothing. Raises `BifronsError`, for a model too that this machine doesn't find."""
        if setup.options.adapters_from is not None or setup.options.image_urls:
            raise OptionError(
                "replicas share neither adapters that are loaded while they run nor pictures by URL; "
                "accepted with --ray: neither --adapters-from nor --image-urls"
            )
        for model in setup.models:
            open_model(model)
        self._ray = connect(address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own, of pydantic
            try:
                from ray import serve
            except ImportError as error:
                raise ResourceError("--ray needs Ray Serve: pip install 'bifrons[scale]'") from error
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        self._serve, self._setup, self._replicas, self._name = serve, setup, replicas, name
        self._device = cluster_workers(self._ray)[0]
        self._deploying = threading.Lock()

    def deploy(self) -> Any:
        """Start the replicas, or replace those that run one after the other; the handle to call them by.
        Raises `ResourceError` where none can load its models."""
        with self._deploying:
            self._serve.start(proxy_location="Disabled")
            target = deployment(self._setup, self._replicas, self._device, self._has_room())
            try:
                return self._serve.run(target, name=self._name, route_prefix=None)
            except (RuntimeError, self._ray.exceptions.RayError) as error:
                status = self._serve.status().applications.get(self._name)
                replicas = status.deployments.get("Replica") if status else None
                text = reason(replicas.message if replicas and replicas.message else str(error))
                raise ResourceError(f"the replicas can't be started: {text}") from error

    def _has_room(self) -> bool:
        """Whether one more replica finds room beside those that run."""
        free, wanted = self._ray.available_resources(), resources(self._setup, self._device)
        kind, count = ("GPU", "num_gpus") if self._device == "cuda" else ("CPU", "num_cpus")
        return free.get(kind, 0) >= wanted[count]

    def reload(self) -> None:
        """Replace all replicas by new ones, which read the models' files anew."""
        note("replacing the replicas")
        try:
            self.deploy()
            note("all replicas are new")
        except ResourceError as error:
            note(f"error: {error}")

    def end(self) -> None:
        """End the replicas, and Ray Serve where it has no other application."""
        self._serve.delete(self._name)
        if not self._serve.status().applications:
            self._serve.shutdown()
        self._ray.shutdown()

    def serve(self, listener: socket.socket, keys: list[bytes] | None, hosts: Sequence[str] | None) -> None:
        """Serve until SIGTERM or Ctrl-C; SIGHUP replaces the replicas. Raises `ResourceError`."""
        try:
            front = Front(self.deploy(), Count(self._name), self._setup, keys, hosts)
            if hasattr(signal, "SIGHUP"):
                signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=self.reload).start())
            server.serve(front, front, self._setup.names, listener, _CLOSING)
        finally:
            self.end()


def application_name(port: int) -> str:
    """The name of the replicas of the server on a port of this machine."""
    return f"bifrons-{re.sub(r'[^A-Za-z0-9-]', '-', socket.gethostname())}-{port}"


def reason(message: str) -> str:
    """Why a deployment failed: the last error of a traceback in a message of Ray Serve."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    found = [line for line in lines if re.match(r"(\w+\.)+\w*(Error|Exception)\b.*: ", line)]
    return printable(
        found[-1].partition(": ")[2] if found else lines[-1] if lines else "Ray Serve gives no reason"
    )
