"""The models that a server runs: a pipeline, its scheduler, and what requests to it may ask."""

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ...blocks.checkpoints.hub import EMBEDDED, find_model_folder
from ...blocks.engine.sampling import TokenHead
from ...blocks.engine.sampling_params import check_integer
from ...blocks.engine.scheduler import Scheduler
from ...blocks.errors import OptionError
from ...blocks.model.kv_cache import KVCache
from ...blocks.placement.memory_budget import rows_that_fit
from ..pipelines import label, load_pipeline
from .errors import ApiError

if TYPE_CHECKING:
    from ...janus.pipeline import JanusPipeline
    from ..pipelines import Pipeline

T = TypeVar("T")

SMALL_DECODER = 50_000_000
"""Number of weights below which a decoder on the CPU computes with one thread by default. One thread was
measured to be faster for janus-nano (13 million weights); where the limit should be was not measured.

A scheduler computes on its own thread, whose OpenMP threads come on top of those of the thread that loaded
the model. When both together outnumbered the cores, threads were seen to sleep some 270 times in a decoding
step of janus-nano. OpenMP putting them to sleep after each product would explain it; that wasn't proved.
"""


@dataclass(frozen=True)
class ServerOptions:
    """Limits of a server. What exceeds one is refused with words, before it costs much."""

    max_queue: int = 64
    """Rows that may wait: an answer is one row, a picture with guidance two."""
    rows: int = 32
    """Rows that run together; fewer where memory is short."""
    context: int = 2048
    """Tokens of a row, prompt and answer; less where the model has less."""
    max_body: int = 20_000_000
    """Bytes of a request, pictures in base64 included."""
    max_pixels: int = 16_000_000
    """Pixels of one picture."""
    max_side: int = 16_384
    """Width and height of one picture: what resizes it to a model's size holds a copy of as many rows, which
    for a picture one pixel wide would be hundreds of times the picture."""
    max_pictures: int = 8
    """Pictures of one request."""
    max_new_tokens: int = 512
    """Length of an answer where the request states none; less where the context has less room."""
    allow_url_fetch: bool = False
    """Whether pictures may be named by address on the public internet."""

    def __post_init__(self) -> None:
        for name, low in (("max_queue", 0), ("rows", 2), ("context", 64)):
            check_integer(name.replace("_", "-"), getattr(self, name), low=low)


class Served:
    """One model and its scheduler."""

    def __init__(self, name: str, pipe: "Pipeline", options: ServerOptions, note: str | None) -> None:
        self.name, self.pipe, self.note = name, pipe, note
        self.created = int(time.time())
        decoder = pipe.model.decoder
        config = decoder.config
        context = min(options.context, config.max_positions)
        row_bytes = KVCache.row_bytes(context, config.num_layers, config.cache_widths, pipe.dtype)
        rows = max(2, min(options.rows, rows_that_fit(row_bytes, pipe.device, decoder.layout)))
        self.scheduler = Scheduler(decoder, rows=rows, context=context, max_waiting=options.max_queue)
        self.text = TokenHead(pipe.model.embed_text, pipe.model.text_logits)
        self.painter = _painter(pipe)
        self.image: TokenHead | None = None
        if self.painter is not None:
            model = self.painter.model
            self.image = TokenHead(model.embed_codes, model.image_logits)

    @property
    def image_size(self) -> str | None:
        """Width x height of painted pictures, in pixels; None for a model that doesn't paint."""
        if self.painter is None:
            return None
        config = self.painter.model.config
        rows, columns = config.grid
        return f"{columns * config.vq.downsampling}x{rows * config.vq.downsampling}"

    def check_rows(self, rows: int) -> None:
        """An `ApiError` for a request that could never run, however long it waited."""
        most = self.scheduler.rows + self.scheduler.max_waiting
        if rows > most:
            message = f"n asks for {rows} rows at once; this server has {most}"
            raise ApiError(400, message, code="invalid_value", param="n")


def _painter(pipe: "Pipeline") -> "JanusPipeline | None":
    from ...janus.pipeline import JanusPipeline

    return pipe if isinstance(pipe, JanusPipeline) else None


class Fleet:
    """All models of a server, and the threads that prepare prompts and encode pictures for them."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.models: dict[str, Served] = {}
        self.stopping = False
        # Two: decoded pictures are large, and the engine needs the processor too.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="bifrons-prepare")

    def load(self, model: str, device: str | None, dtype: str | None, **how: Any) -> Served:
        """Load a model and start its scheduler; `how` are other keywords of `load_pipeline`. Raises
        `BifronsError`."""
        name = public_name(model)
        if name in self.models:
            raise OptionError(f"two models are called {name}; accepted: models of different names")
        pipe = load_pipeline(model, device, dtype, **how)
        served = Served(name, pipe, self.options, label(find_model_folder(model)))
        self.models[name] = served
        return served

    def get(self, name: str) -> Served:
        found = self.models.get(name)
        if found is None:
            known = ", ".join(self.models)
            raise ApiError(
                404, f"there is no model {name!r}; served are: {known}", code="model_not_found", param="model"
            )
        return found

    def painting(self, name: str | None) -> Served:
        """The named model, or the first that paints; an `ApiError` for one that doesn't."""
        painters = [served for served in self.models.values() if served.painter is not None]
        if name is None and painters:
            return painters[0]
        served = self.get(name) if name is not None else None
        if served is None or served.painter is None:
            known = ", ".join(one.name for one in painters) or "none"
            raise ApiError(
                400, f"this model does not paint; those that do: {known}", code="invalid_value", param="model"
            )
        return served

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Call `work` on one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def close(self) -> None:
        """Finish what runs."""
        self.stopping = True
        for served in self.models.values():
            served.scheduler.close()
        self._threads.shutdown()


def public_name(model: str) -> str:
    """What requests call a model: an embedded name or a hub id as it is, a folder by its last part."""
    return model if model in EMBEDDED and not Path(model).is_dir() else _folder_name(model)


def _folder_name(model: str) -> str:
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def set_num_threads(threads: int | None, decoders: Iterable[Any]) -> None:
    """Set the number of torch's threads per computation, before any scheduler computes.

    It is `threads` if given; else what OMP_NUM_THREADS says; else 1 if all decoders are small and on the CPU;
    else torch's default. Raises `OptionError` if `threads` is less than 1.
    """
    if threads is not None:
        torch.set_num_threads(check_integer("threads", threads, low=1))
    elif "OMP_NUM_THREADS" not in os.environ and all(map(_is_small, decoders)):
        torch.set_num_threads(1)


def _is_small(decoder: Any) -> bool:
    if decoder.device.type != "cpu":
        return False
    return sum(weight.numel() for weight in decoder.parameters()) < SMALL_DECODER
