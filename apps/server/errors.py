"""Errors as OpenAI's error object: `{"error": {"message", "type", "param", "code"}}`."""

import json
import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ...blocks.engine.background import QueueFull, SchedulerStopped
from ...blocks.errors import BifronsError, OptionError, PictureError, PromptError
from .supervision import SchedulerFailed

RETRY_AFTER_SECONDS = 2
INTERNAL_ERROR = "the server failed to handle this request; its log has the details"
STOPPING = "the server is stopping and accepts no more requests"
CLIENT_GONE = 499
"""The status that nginx logs for a client that disconnected; nobody receives it."""

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {PictureError: "invalid_image", PromptError: "invalid_prompt", OptionError: "invalid_value"}
_MAX_MESSAGE = 600


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """The response to every refused request."""

    error: ErrorBody


class ApiError(Exception):
    """A refused request: HTTP status, message, OpenAI's code, and the field of the request that is wrong."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


class ClientGone(Exception):
    """The client has closed the connection."""


def invalid_value(message: str, param: str | None) -> ApiError:
    """The error for an unacceptable value of one field, with status 400."""
    return ApiError(400, message, code="invalid_value", param=param)


def error_content(status: int, message: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """The error object; long messages are truncated."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    shown = message if len(message) <= _MAX_MESSAGE else message[:_MAX_MESSAGE] + "..."
    return {"error": {"message": shown, "type": kind, "param": param, "code": code}}


def error_response(
    status: int,
    message: str,
    code: str | None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """A response with the error object."""
    # Escaped to ASCII, because a message may quote a lone surrogate, which UTF-8 can't encode.
    content = json.dumps(error_content(status, message, code, param))
    return Response(content, status, headers=headers, media_type="application/json")


def error_fields(error: Exception) -> tuple[int, str, str, str | None]:
    """Status, message, code and field of an exception that a request can cause."""
    if isinstance(error, ApiError):
        return error.status, error.message, error.code, error.param
    if isinstance(error, QueueFull):
        return 429, "the server is busy and its queue is full; try again in a moment", "queue_full", None
    if isinstance(error, SchedulerFailed):
        return 503, str(error), "engine_failed", None
    if isinstance(error, SchedulerStopped):
        return 503, STOPPING, "stopping", None
    if isinstance(error, BifronsError):
        code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), "invalid_request")
        return 400, str(error), code, None
    raise TypeError(f"not an error of a request: {error!r}")


def retry_headers() -> dict[str, str]:
    """When to try again after a refusal with 429 or 503."""
    return {"Retry-After": str(RETRY_AFTER_SECONDS)}


async def _handle_refusal(request: Request, error: Exception) -> Response:
    status, message, code, param = error_fields(error)
    headers = retry_headers() if status in (429, 503) else None
    return error_response(status, message, code, param, headers)


async def _handle_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {400: "invalid_json", 404: "unknown_url", 405: "method_not_allowed"}
    message = f"{request.method} {request.url.path}: {error.detail}"
    headers = dict(error.headers) if error.headers else None
    return error_response(error.status_code, message, codes.get(error.status_code), headers=headers)


async def _handle_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _handle_bug(request: Request, error: Exception) -> Response:
    logging.getLogger("bifrons.server").error("a request failed", exc_info=error)
    return error_response(500, INTERNAL_ERROR, "internal_error")


def install(app: FastAPI) -> None:
    """Answer every kind of exception with OpenAI's error object."""
    for kind in (ApiError, QueueFull, SchedulerStopped, BifronsError):
        app.add_exception_handler(kind, _handle_refusal)
    app.add_exception_handler(HTTPException, _handle_http)
    app.add_exception_handler(ClientGone, _handle_disconnect)
    app.add_exception_handler(Exception, _handle_bug)
