"""The HTTP server: routes, metrics, the OpenAPI document, and the life of the process."""

import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import FastAPI, Response
from fastapi.encoders import jsonable_encoder
from fastapi.openapi.models import Schema
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp

from ..allowed_hosts import AllowedHosts
from ..defaults import version
from . import adapters, chat, completions, errors, image_files, images, responses, responses_route, schema
from .connections import BACKLOG, LogOnce, Server, Service
from .errors import ErrorReply, error_response
from .middleware import ApiKeyCheck, BodyBudget, BodyLimit, FramingCheck, RequestMetrics
from .normalize import NormalizedRequests, with_cors
from .registry import ModelRegistry, ServedModel
from .text_schema import CompletionRequest, ResponsesRequest

_ERRORS: dict[int, str] = {
    400: "The request is malformed or can't be fulfilled",
    401: "The API key is missing or wrong",
    404: "There is no such model",
    408: "The body took too long to arrive",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    421: "The server does not answer to this host",
    429: "The queue is full, or too many large bodies arrive; Retry-After says when to try again",
    500: "The server failed",
    503: "The server is stopping or has too many connections, or its engine or replica has failed",
}


_BODIES = (schema.ChatRequest, schema.ImageRequest, CompletionRequest, ResponsesRequest)


class _SchedulerMetrics:
    """A Prometheus collector that reads the schedulers' counts when it is scraped."""

    def __init__(self, registry: ModelRegistry) -> None:
        self.registry = registry

    def collect(self) -> Any:
        gauges = {
            "rows_used": "Rows in use",
            "rows_promised": "Rows in use, waiting or being prepared",
            "rows": "Rows in the cache",
            "failed": "1 if the engine has failed, else 0",
        }
        counters = {
            "steps": "Decoder steps",
            "passes": "Decoder steps, each counted for every request that got tokens from it",
            "tokens": "Tokens sampled",
        }
        for kind, table in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, text in table.items():
                family = kind(f"bifrons_engine_{name}", text, labels=["model"])
                for served in self.registry.engines:
                    family.add_metric([served.name], getattr(served.scheduler, name))
                yield family


def _card(served: ServedModel) -> responses.ModelCard:
    return responses.ModelCard(
        id=served.name,
        created=served.created,
        paints=served.image_pipe is not None,
        image_size=images.size_text(served.image_size) if served.image_size else None,
        context=served.scheduler.context,
        max_model_len=served.scheduler.context,
        note=served.note,
        parent=None if served.base is None else served.base.name,
    )


def _add_routes(app: FastAPI, registry: ModelRegistry, collectors: CollectorRegistry) -> None:
    app.include_router(chat.router(registry))
    app.include_router(completions.router(registry))
    app.include_router(responses_route.router(registry))
    app.include_router(images.router(registry))
    app.include_router(image_files.router(registry.image_files))
    if registry.options.adapters_from is not None:
        app.include_router(adapters.router(registry, _card))

    @app.get("/v1/models")
    async def models() -> responses.ModelList:
        """The models that this server runs."""
        return responses.ModelList(data=[_card(served) for served in registry.models.values()])

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> responses.ModelCard:
        """One model."""
        return _card(registry.get(model))

    unhealthy: dict[int | str, dict[str, Any]] = {503: {"model": responses.Health, "description": "It isn't"}}

    @app.get("/health", responses=unhealthy, response_model_exclude_none=True)
    @app.get("/readyz", responses=unhealthy, response_model_exclude_none=True)
    async def health(response: Response) -> responses.Health:
        """Whether the server accepts requests."""
        failed = registry.failed
        status = "failed" if failed else "stopping" if registry.stopping else "ok"
        response.status_code = 200 if status == "ok" else 503
        return responses.Health(status=status, models=list(registry.models), failed=failed or None)

    @app.get("/livez", responses=unhealthy, response_model_exclude_none=True)
    async def livez(response: Response) -> responses.Health:
        """Whether the server works; 503 means that it must be restarted."""
        reply = await health(response)
        response.status_code = 503 if reply.status == "failed" else 200
        return reply

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(generate_latest(collectors), media_type=CONTENT_TYPE_LATEST)


def _complete_openapi(app: FastAPI, registry: ModelRegistry) -> None:
    """Put the model names and the actual errors into the OpenAPI document; FastAPI's 422 is never sent."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = generate()
        schemas = document["components"]["schemas"]
        more = adapters.BODIES if registry.options.adapters_from is not None else ()
        bodies: Any = [(body, "validation") for body in (*_BODIES, *more)]
        _, definitions = models_json_schema(bodies, ref_template="#/components/schemas/{model}")
        for name, definition in definitions["$defs"].items():  # in the form that FastAPI gives to all others
            schemas[name] = jsonable_encoder(Schema(**definition), by_alias=True, exclude_none=True)
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for name in ("ChatRequest", "CompletionRequest", "ResponsesRequest"):
            schemas[name]["properties"]["model"]["enum"] = list(registry.models)
        if image_models := [served.name for served in registry.image_models]:
            schemas["ImageRequest"]["properties"]["model"]["anyOf"][0]["enum"] = image_models
        error_schema = ErrorReply.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(error_schema.pop("$defs"))
        schemas["ErrorReply"] = error_schema
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorReply"}}}
        for path, methods in document["paths"].items():
            for operation in methods.values():
                operation["responses"].pop("422", None)
                for status, text in _ERRORS.items() if path.startswith("/v1/") else ():
                    response = {"description": text, "content": content}
                    operation["responses"].setdefault(str(status), response)
        return document

    app.openapi = openapi


def create_app(
    registry: ModelRegistry, keys: list[bytes] | None = None, hosts: Sequence[str] | None = None
) -> ASGIApp:
    """The ASGI application; with `keys`, every path but those of health and /openapi.json requires one; with
    `hosts`, requests to others are refused."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        registry.close()
        await registry.pictures.pool.close()

    app = FastAPI(
        title="Bifrons",
        version=version(),
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    collectors = CollectorRegistry()
    collectors.register(_SchedulerMetrics(registry))
    errors.install(app)
    _add_routes(app, registry, collectors)
    _complete_openapi(app, registry)
    return guarded(app, registry, collectors, keys, hosts)


def guarded(
    app: ASGIApp,
    service: Service,
    collectors: CollectorRegistry,
    keys: list[bytes] | None,
    hosts: Sequence[str] | None,
) -> ASGIApp:
    """An application behind all checks that need no model, and metrics of its requests."""
    options = service.options
    budget = BodyBudget(options.max_bodies * options.max_body)
    wrapped: ASGIApp = BodyLimit(app, options.max_body, budget, lambda: service.stopping)
    if keys:
        wrapped = ApiKeyCheck(wrapped, keys)
    if options.allow_origins:
        wrapped = with_cors(wrapped, options.allow_origins)
    if hosts is not None:
        wrapped = AllowedHosts(wrapped, hosts, lambda message: error_response(421, message, "unknown_host"))
    return NormalizedRequests(RequestMetrics(FramingCheck(wrapped), collectors))


def serve(
    app: ASGIApp, service: Service, names: Iterable[str], listener: socket.socket, closing: float = 3.0
) -> None:
    """Serve models of these names until SIGTERM or Ctrl-C; then refuse new requests, give running ones the
    options' `grace`, and return. closing: see `Server`."""
    server = Server(app, service, closing)
    once = LogOnce(time.monotonic)
    for name in ("uvicorn.error", "asyncio", "bifrons.server", "bifrons.engine"):
        logging.getLogger(name).addFilter(once)
    with short_pauses():
        listener.listen(BACKLOG)  # from here on connections wait for the event loop instead of being refused
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        print(f"serving {', '.join(names)} on {url}", file=sys.stderr, flush=True)
        # After its shutdown uvicorn raises the signal that caused it once more; that one is ignored.
        previous = {kind: signal.signal(kind, signal.SIG_IGN) for kind in (signal.SIGTERM, signal.SIGINT)}
        try:
            server.run(sockets=[listener])
        finally:
            for kind, handler in previous.items():
                signal.signal(kind, handler)


@contextmanager
def short_pauses() -> Iterator[None]:
    """Let a scheduler's thread go on soon while other threads of the process run Python."""
    # A thread that waits for the interpreter lock (GIL) gets it after this time. The default is 5 ms, as long
    # as a step of a small model, and a scheduler's thread may wait many times in a step: each operation of
    # torch lets others in.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.00005)
    # What exists by now stays: the garbage collector need not search it, which takes a tenth of a second.
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval)
