"""The models of a server, each with its scheduler, and the server's limits and number of threads."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from ...blocks.adapter_choice import AdapterChoice
from ...blocks.chat.text_generation import text_head
from ...blocks.checkpoints.hub import find_model_folder
from ...blocks.errors import CheckpointError, OptionError, shown
from ...blocks.graphs.graph_runner import GraphRunner
from ...blocks.placement.memory_budget import size_text
from ...blocks.sampling.request import Request as GenerationRequest
from ...blocks.sampling.request import TokenHead
from ...blocks.speculate import Speculate
from ...janus.image_generation import image_head
from ..pipelines import as_janus, label, load_pipeline, public_name
from ..warmup import warm_up
from .errors import ApiError, invalid_value
from .image_decoder import ImageDecoder
from .image_files import ImageFiles
from .limits import Limits, ServerOptions
from .notifier import Notifier, OutputSignal
from .pictures import PictureReader
from .supervision import SupervisedScheduler, contained

if TYPE_CHECKING:
    from ..pipelines import Pipeline

T = TypeVar("T")
_MakeRequests = Callable[[], Awaitable[list[GenerationRequest]]]

PICTURE_SECONDS = 3.0
"""Time that pictures have to be decoded after the signal to stop."""
SHORT_TEXT = 2000
"""Characters that are tokenized and embedded faster than they are handed to another thread and back."""


class ServedModel:
    """One model and, once it is opened, its scheduler. A model with an adapter has those of its `base`."""

    scheduler: SupervisedScheduler
    limits: Limits
    speculate: Speculate

    def __init__(
        self, name: str, pipe: "Pipeline", note: str | None, base: "ServedModel | None" = None
    ) -> None:
        self.name, self.pipe, self.note, self.base = name, pipe, note, base
        self.created = int(time.time())
        self.text_head = text_head(pipe.model)
        self.image_pipe = as_janus(pipe)
        """The pipeline if it generates images, else None."""
        self.image_head: TokenHead | None = None
        self.image_decoder: ImageDecoder | None = None
        if self.image_pipe is not None:
            model = self.image_pipe.model
            self.image_decoder = ImageDecoder(model)
            self.image_head = image_head(model)

    def open(self, options: ServerOptions, sharing: int = 1) -> None:
        """Make the scheduler. Its cache may take a share of the free memory, one of `sharing` equal ones."""
        self.speculate = options.speculate
        if self.base is not None:
            self.limits, self.scheduler = self.base.limits, self.base.scheduler
            return
        decoder = self.pipe.model.decoder
        rows = options.rows or (256 if decoder.device.type == "cuda" else 32)
        rows = max(rows, 3) if self.image_pipe else rows  # a picture's two, and one for a chat beside it
        self.limits = Limits(options, self.pipe, rows, sharing)
        self.scheduler = SupervisedScheduler(
            decoder, rows=rows, context=self.limits.context, max_waiting=options.max_queue, sharing=sharing
        )
        self.limits.share(self.scheduler)

    @property
    def capacity(self) -> str:
        """The size of the cache in words, and what limits it."""
        scheduler, size = self.scheduler, self.scheduler.runner.cache_bytes
        text = f"{scheduler.rows} rows of up to {scheduler.context:,} tokens"
        return f"{text}{f', {size_text(size)}' if size else ''} ({self.limits.startup_text})"

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Width and height of generated images in pixels; None if the model generates none."""
        if self.image_pipe is None:
            return None
        config = self.image_pipe.model.config
        rows, columns = config.grid
        return columns * config.vq.downsampling, rows * config.vq.downsampling

    async def submit(
        self, rows: int, make_requests: _MakeRequests, client: object, priority: int = 0
    ) -> list[GenerationRequest]:
        """Reserve cache rows for a client, then make and queue the generation requests that take them.

        Raises `ApiError` for more rows than the server has, `QueueFull` if they aren't available now.
        """
        limit = self.scheduler.rows + self.scheduler.max_waiting
        if rows > limit:
            message = f"n asks for {rows} rows at once; this server has {limit}"
            raise invalid_value(message, "n")
        self.scheduler.reserve(rows, client, priority)
        try:
            requests = await make_requests()
            for request in requests:
                request.client, request.priority = client, priority
                request.decoder, request.speculate = self.pipe.model.decoder, self.speculate
            self.scheduler.submit(requests)
        except BaseException:
            self.scheduler.release(rows, client, priority)
            raise
        return requests


class ModelRegistry:
    """The models of a server, and the threads that prepare prompts and encode images for them."""

    def __init__(self, options: ServerOptions) -> None:
        self.options, self.pictures = options, PictureReader(options)
        self.image_files = ImageFiles(options.image_urls * 1_000_000)
        self.models: dict[str, ServedModel] = {}
        self.stopping = False
        self._loading = asyncio.Lock()
        self._notifier: Notifier | None = None
        # Encoding images takes longest, outside of the GIL.
        threads = min(16, max(2, (os.cpu_count() or 2) - 2))
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="bifrons-prepare")
        # One, since a vocabulary compiles one format at a time: others would only wait for it.
        self.compilers = ThreadPoolExecutor(1, thread_name_prefix="bifrons-compile")
        self.encoders = ThreadPoolExecutor(threads, thread_name_prefix="bifrons-encode")

    def load(self, model: str, device: str | None, dtype: str | None, **options: Any) -> ServedModel:
        """Load a model; `options` are further keywords of `load_pipeline`. Raises `BifronsError`."""
        name = public_name(model)
        if name in self.models:
            raise OptionError(f"two models are called {name}; accepted: models with different names")
        pipe = load_pipeline(model, device, dtype, **options)
        return self.add(name, pipe, label(find_model_folder(model)))

    def add(self, name: str, pipe: "Pipeline", note: str | None = None) -> ServedModel:
        """Serve a loaded model under this name."""
        self.models[name] = ServedModel(name, pipe, note)
        return self.models[name]

    def add_adapter(self, choice: AdapterChoice) -> ServedModel:
        """Serve a loaded model with an adapter under the adapter's name, beside the model itself.

        The model is the first that the adapter fits. Raises `BifronsError` if there is none.
        """
        served = self.models[choice.shown_name] = self._with_adapter(choice)
        return served

    async def load_adapter(self, choice: AdapterChoice) -> ServedModel:
        """`add_adapter` while the schedulers run. Raises `BifronsError`, for an adapter too that captured
        steps can't run."""
        async with self._loading:
            decoders = [base.pipe.model.decoder for base in self.engines]
            captures = [decoder.capture for decoder in decoders]
            served = await self.run_in_thread(self._with_adapter, choice)
            fits = all(one.capture is before for one, before in zip(decoders, captures, strict=True))
            for decoder, capture in zip(decoders, captures, strict=True):
                decoder.capture = capture
            if not fits and served.base and isinstance(served.base.scheduler.runner, GraphRunner):
                raise OptionError(
                    f"the adapter {choice.shown_name} changes experts, norms or kv_b_proj, for which "
                    "captured steps have no room; accepted: --adapter at the server's start"
                )
            served.open(self.options)
            self.models[served.name] = served
        return served

    def unload_adapter(self, name: str) -> ServedModel:
        """Serve an adapter no longer; its requests that run are finished. Raises `ApiError`."""
        served = self.get(name)
        if served.base is None:
            raise invalid_value(f"{shown(name)} is a model, no adapter", "lora_name")
        return self.models.pop(name)

    def _with_adapter(self, choice: AdapterChoice) -> ServedModel:
        name, errors = choice.shown_name, []
        if name in self.models:
            raise OptionError(f"two models are called {name}; accepted: NAME=FOLDER with another name")
        for base in self.engines:
            try:
                pipe = base.pipe.with_adapter(choice.folder, name, choice.scale)
            except CheckpointError as error:
                errors.append(error)
                continue
            note = f"{base.name} with the adapter {name}"
            return ServedModel(name, pipe, note, base)
        raise errors[0]

    @property
    def engines(self) -> list[ServedModel]:
        """The models with schedulers of their own: all but those with adapters."""
        return [served for served in self.models.values() if served.base is None]

    def open(self) -> None:
        """Make the schedulers of all loaded models, which divide the free memory among themselves."""
        engines = self.engines
        for opened, served in enumerate(engines):
            served.open(self.options, len(engines) - opened)
        for served in self.models.values():
            if served.base is not None:
                served.open(self.options)

    def warm_up(self) -> None:
        """Compile and capture what requests will need; shows progress on stderr."""
        for served in self.engines:
            warm_up(served.name, served.pipe, served.scheduler)

    def start(self) -> None:
        """Start the threads of the schedulers."""
        for served in self.engines:
            served.scheduler.start()

    def get(self, name: str) -> ServedModel:
        """The model of this name; an `ApiError` with status 404 if there is none."""
        served = self.models.get(name)
        if served is None:
            message = f"there is no model {name!r}; available: {', '.join(self.models)}"
            raise ApiError(404, message, code="model_not_found", param="model")
        return served

    @property
    def image_models(self) -> list[ServedModel]:
        """The models that generate images."""
        return [served for served in self.models.values() if served.image_pipe is not None]

    def get_image_model(self, name: str | None) -> ServedModel:
        """The named model, else the first that generates images; an `ApiError` if it doesn't or none does."""
        if name is None and self.image_models:
            return self.image_models[0]
        served = self.get(name) if name is not None else None
        if served is None or served.image_pipe is None:
            names = ", ".join(model.name for model in self.image_models) or "none"
            message = f"this model does not paint; those that do: {names}"
            raise invalid_value(message, "model")
        return served

    @property
    def failed(self) -> list[str]:
        """Names of the models whose engine has failed."""
        return [name for name, served in self.models.items() if served.scheduler.failed]

    async def run_in_thread(
        self, function: Callable[..., T], *args: Any, threads: ThreadPoolExecutor | None = None
    ) -> T:
        """The result of `function(*args)`, called on one of the threads, by default those for prompts."""
        work = (threads or self._threads, contained, function, *args)
        return await asyncio.get_running_loop().run_in_executor(*work)

    def new_signal(self) -> OutputSignal:
        """A signal for one HTTP request, which is handled on the running event loop."""
        if self._notifier is None or self._notifier.loop is not asyncio.get_running_loop():
            self._notifier = Notifier()
        return OutputSignal(self._notifier)

    def stop(self) -> None:
        """Refuse new requests, and decode pictures for some more seconds only."""
        self.stopping = True
        self.pictures.pool.stop(PICTURE_SECONDS)

    def cancel_all(self) -> None:
        """Refuse new requests and end those that wait or run."""
        self.stopping = True
        for served in self.engines:
            served.scheduler.cancel_all()

    def close(self) -> None:
        """Refuse new requests and finish those that run."""
        self.stopping = True
        for served in self.engines:
            served.scheduler.close(timeout=5.0)
        for threads in (self._threads, self.compilers, self.encoders):
            threads.shutdown(wait=False, cancel_futures=True)
