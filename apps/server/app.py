"""The HTTP server: an OpenAI-compatible face of the engines."""

import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.types import ASGIApp

from ...blocks.errors import OptionError
from ..defaults import version
from . import chat, errors, images
from . import schema as schema
from .errors import ErrorReply
from .middleware import BodyLimit, Counting, KeyCheck
from .registry import Fleet, Served

_REFUSALS: dict[int, str] = {
    400: "The request is malformed, or asks for what can't be",
    401: "The API key is missing or wrong",
    404: "There is no such model",
    408: "The body came too slowly",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    429: "The queue is full; Retry-After says when to try again",
    500: "The server failed",
    503: "The server is stopping",
}


class _SchedulerMetrics:
    """What the engines tell at the moment they are asked."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def collect(self) -> Any:
        gauges = {
            "rows_used": ("Rows that run", lambda it: it.rows_used),
            "rows_promised": ("Rows that run, wait or are prepared", lambda it: it.rows_promised),
            "rows": ("Rows of the cache", lambda it: it.rows),
        }
        counters = {
            "steps": ("Decoder steps", lambda it: it.steps),
            "tokens": ("Tokens chosen", lambda it: it.tokens),
        }
        for kind, table in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, (text, read) in table.items():
                family = kind(f"bifrons_engine_{name}", text, labels=["model"])
                for served in self.fleet.models.values():
                    family.add_metric([served.name], read(served.scheduler))
                yield family


def _card(served: Served) -> schema.ModelCard:
    return schema.ModelCard(
        id=served.name,
        created=served.created,
        paints=served.painter is not None,
        image_size=served.image_size,
        context=served.scheduler.context,
        note=served.note,
    )


def _add_routes(app: FastAPI, fleet: Fleet, registry: CollectorRegistry) -> None:
    app.include_router(chat.router(fleet))
    app.include_router(images.router(fleet))

    @app.get("/v1/models")
    async def models() -> schema.ModelList:
        """The models that this server runs."""
        return schema.ModelList(data=[_card(served) for served in fleet.models.values()])

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> schema.ModelCard:
        """One model."""
        return _card(fleet.get(model))

    @app.get("/health", responses={503: {"model": schema.Health, "description": "The server is stopping"}})
    async def health(response: Response) -> schema.Health:
        """Whether requests are taken."""
        response.status_code = 503 if fleet.stopping else 200
        return schema.Health(status="stopping" if fleet.stopping else "ok", models=list(fleet.models))

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _exact_schema(app: FastAPI, fleet: Fleet) -> None:
    """Name the models, and replace FastAPI's own 422, which is never sent, by the refusals that are."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        found = generate()
        kinds = found["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            kinds.pop(name, None)
        kinds["ChatRequest"]["properties"]["model"]["enum"] = list(fleet.models)
        painters = [name for name, served in fleet.models.items() if served.painter is not None]
        if painters:
            kinds["ImageRequest"]["properties"]["model"]["anyOf"][0]["enum"] = painters
        refused = ErrorReply.model_json_schema(ref_template="#/components/schemas/{model}")
        kinds.update(refused.pop("$defs"))
        kinds["ErrorReply"] = refused
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorReply"}}}
        for path, methods in found["paths"].items():
            for operation in methods.values():
                operation["responses"].pop("422", None)
                for status, text in _REFUSALS.items() if path.startswith("/v1/") else ():
                    answer = {"description": text, "content": content}
                    operation["responses"].setdefault(str(status), answer)
        return found

    app.openapi = openapi


def create_app(fleet: Fleet, keys: list[bytes] | None = None) -> ASGIApp:
    """The application over loaded models; with `keys`, all but health and schema need one of them."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        fleet.close()

    app = FastAPI(
        title="Bifrons",
        version=version(),
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    registry = CollectorRegistry()
    registry.register(_SchedulerMetrics(fleet))
    errors.install(app)
    _add_routes(app, fleet, registry)
    _exact_schema(app, fleet)
    guarded: ASGIApp = BodyLimit(app, fleet.options.max_body)
    if keys:
        guarded = KeyCheck(guarded, keys)
    return Counting(guarded, registry)


def _listen(host: str, port: int) -> socket.socket:
    try:
        kind = socket.AF_INET6 if ":" in host else socket.AF_INET
        # With the protocol named, asyncio sends small writes at once; else each answer is 40 ms late.
        listener = socket.socket(kind, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        raise OptionError(f"can't listen on {host} port {port}: {error}") from error
    return listener


def serve(fleet: Fleet, host: str, port: int, keys: list[bytes] | None) -> None:
    """Answer requests until SIGTERM or Ctrl-C; then refuse what comes, finish what runs, and return."""
    listener = _listen(host, port)
    config = uvicorn.Config(create_app(fleet, keys), log_level="warning", access_log=False, ws="none")
    server = _Server(config, fleet)
    shown = f"[{host}]" if ":" in host else host
    names = ", ".join(fleet.models)
    print(f"serving {names} on http://{shown}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    # uvicorn raises the signal that ended it once more when it is done; by then it has had its effect.
    previous = {kind: signal.signal(kind, signal.SIG_IGN) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listener])
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, fleet: Fleet) -> None:
        super().__init__(config)
        self.fleet = fleet

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.fleet.stopping = True
        super().handle_exit(sig, frame)
