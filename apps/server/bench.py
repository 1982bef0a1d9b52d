"""The server with random weights at released sizes, measured under load beside the pipeline's own batches."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...blocks.checkpoints.quantize import check_kind
from ...blocks.device import module_bytes, release_cached_memory, resolve_device, resolve_dtype, synchronize
from ...blocks.errors import check_integer
from ...eval.bench.configs import pick_config
from ...eval.bench.measure import machine, peak, reset_peak
from ...eval.bench.pipelines import random_pipeline
from ...eval.bench.serving import AT_ONCE, Load, measure_serving, picture
from ...text.config import TextConfig
from ..allowed_hosts import listen
from ..pipelines import as_janus
from .app import create_app, short_pauses
from .connections import Server
from .registry import ModelRegistry, ServerOptions
from .setup import set_num_threads

if TYPE_CHECKING:
    from ..pipelines import Pipeline


@dataclass(frozen=True)
class ServeBenchOptions:
    """What to serve and how many requests to send. `requests` is the most in one load; answers have `tokens`
    tokens. Raises `OptionError` for a value outside its range."""

    family: str
    size: str
    layers: int | None = None
    requests: int = 128
    tokens: int = 128
    rows: int | None = None
    context: int = 2048
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    eager: bool = False

    def __post_init__(self) -> None:
        check_integer("requests", self.requests, low=1)
        check_integer("tokens", self.tokens, low=2)
        check_kind(self.quantize)


def bench_serving(options: ServeBenchOptions, on_load: Callable[[Load], object]) -> dict[str, Any]:
    """Serve and measure; `on_load` gets the figures of each load when they are there. Returns everything,
    ready for JSON.

    Raises `OptionError` where the model does not fit.
    """
    config = pick_config(options.family, options.size, options.layers)
    assert not isinstance(config, TextConfig), "the family is one of those with pictures"
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype or ("bfloat16" if device.type == "cpu" else None), device)
    limits, threads = ServerOptions(rows=options.rows, context=options.context), torch.get_num_threads()
    report: dict[str, Any] = {"machine": machine(device), "options": vars(options)}
    pipe = random_pipeline(config, device, dtype, options.quantize)
    pipe.model.decoder.capture = False if options.eager else None
    report |= {"layers": config.decoder.num_layers, "dtype": str(dtype).removeprefix("torch.")}
    report["weights"] = module_bytes(pipe.model)
    reset_peak(device)
    try:
        report |= _measure_server(pipe, limits, options, on_load)
        gc.collect()
        release_cached_memory(device)
        report["pipeline"] = pipeline_rates(pipe, options)
    finally:
        torch.set_num_threads(threads)
    return report


def _measure_server(
    pipe: "Pipeline", limits: ServerOptions, options: ServeBenchOptions, on_load: Callable[[Load], object]
) -> dict[str, Any]:
    started = time.perf_counter()
    registry = ModelRegistry(limits)
    served = registry.add(f"{options.family}-{options.size}", pipe)
    set_num_threads(None, [pipe.model.decoder])
    registry.open()
    registry.warm_up()
    registry.start()
    with running_server(registry) as url:
        ready = time.perf_counter() - started
        loads, gaps = measure_serving(
            url,
            served.name,
            paints=served.image_pipe is not None,
            tokens=options.tokens,
            requests=options.requests,
            on_load=on_load,
        )
        on_cuda = pipe.device.type == "cuda"
        held = torch.cuda.memory_reserved(pipe.device) if on_cuda else peak(pipe.device)
    registry.models.clear()  # FastAPI's caches keep the routes, and with them the registry
    return {
        "ready": ready,
        "capacity": served.capacity,
        "held": held,
        "loads": [load.as_json() for load in loads],
        "gaps": None if gaps is None else gaps.as_json(),
    }


@contextmanager
def running_server(registry: ModelRegistry) -> Iterator[str]:
    """The server in a thread of this process, on a free port; yields its address."""
    listener = listen("127.0.0.1", 0)
    listener.listen()
    server = Server(create_app(registry), registry)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="bifrons-server")
    with short_pauses():
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
            listener.close()


def pipeline_rates(pipe: "Pipeline", options: ServeBenchOptions) -> dict[str, dict[int, float]]:
    """Requests per second of the pipeline's own batches, by kind of work and size of the batch."""
    work: dict[str, Callable[[int], object]] = {}
    if (janus := as_janus(pipe)) is not None:
        work["pictures"] = lambda count: janus.generate(
            [f"a photo of thing {i}" for i in range(count)], seed=1
        )

    def answer(count: int, pictures: bool) -> None:
        conversations = []
        for i in range(count):
            parts: list[dict[str, Any]] = [{"type": "image", "image": picture(i)}] if pictures else []
            parts.append({"type": "text", "text": f"Tell me story number {i}."})
            conversations.append([{"role": "user", "content": parts}])
        pipe.chat_batch(conversations, options.tokens, 1.0, seed=1)

    work[f"answers of {options.tokens} tokens"] = lambda count: answer(count, False)
    work["answers about a picture"] = lambda count: answer(count, True)
    sizes = dict.fromkeys(min(count, options.requests) for count in AT_ONCE)
    return {name: {size: _rate(pipe.device, run, size) for size in sizes} for name, run in work.items()}


def _rate(device: torch.device, run: Callable[[int], object], size: int) -> float:
    """Items per second of the second run of a batch; the first one warms up."""
    run(size)
    synchronize(device)
    started = time.perf_counter()
    run(size)
    synchronize(device)
    return size / (time.perf_counter() - started)
