"""Errors as OpenAI's error object: `{"error": {"message", "type", "param", "code"}}`."""

import json
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ...blocks.engine.background import QueueFull, SchedulerStopped
from ...blocks.errors import BifronsError, OptionError, PictureError, PromptError
from .supervision import SchedulerFailed

RETRY_AFTER_SECONDS = 2
INTERNAL_ERROR = "the server failed to handle this request; its log has the details"
CLIENT_GONE = 499
"""The status that nginx logs for a client that disconnected; nobody receives it."""

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {PictureError: "invalid_image", PromptError: "invalid_prompt", OptionError: "invalid_value"}
_FIELD_ERRORS = {
    "missing": ("missing_required_parameter", "this field is required"),
    "extra_forbidden": ("unknown_parameter", "this field is not supported"),
}
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


def invalid_value(message: str, param: str) -> ApiError:
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
        return 503, "the server is stopping and accepts no more requests", "stopping", None
    if isinstance(error, BifronsError):
        code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), "invalid_request")
        return 400, str(error), code, None
    raise TypeError(f"not an error of a request: {error!r}")


async def json_only(request: Request) -> None:
    """Refuse a body that isn't declared as JSON, with a clearer message than FastAPI's.

    This also keeps other web sites from posting to a server on the user's machine: browsers don't send this
    content type across origins without asking the server first.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json_suffix = content_type.startswith("application/") and content_type.endswith("+json")
    if content_type != "application/json" and not is_json_suffix:
        problem = f"is {content_type!r}" if content_type else "is missing"
        message = f"the content type {problem}; accepted: application/json"
        raise ApiError(415, message, code="unsupported_media_type")


async def _handle_refusal(request: Request, error: Exception) -> Response:
    status, message, code, param = error_fields(error)
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else None
    return error_response(status, message, code, param, headers)


async def _handle_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems: Sequence[dict[str, Any]] = error.errors()
    if problems[0]["type"] == "json_invalid":
        return error_response(
            400, f"the body is not valid JSON: {problems[0]['ctx']['error']}", "invalid_json"
        )
    field, problems = _most_specific([(_field_path(problem, error.body), problem) for problem in problems])
    codes_and_texts = [
        _FIELD_ERRORS.get(problem["type"], ("invalid_value", str(problem["msg"]))) for problem in problems
    ]
    text = " or ".join(dict.fromkeys(text for _, text in codes_and_texts))
    return error_response(400, f"{field or 'the body'}: {text}", codes_and_texts[0][0], field or None)


def _field_path(problem: dict[str, Any], body: Any) -> str:
    """The dotted path of a field in the request, without the type names in pydantic's location."""
    path, value, location = [], body, problem["loc"][1:]
    for depth, part in enumerate(location, 1):
        is_index = isinstance(value, list) and isinstance(part, int)
        exists = is_index or (isinstance(value, dict) and part in value)
        if exists:
            value = value[part]
        if exists or (depth == len(location) and problem["type"] == "missing"):
            path.append(str(part))
    return ".".join(path)


def _most_specific(problems: list[tuple[str, dict[str, Any]]]) -> tuple[str, list[dict[str, Any]]]:
    """The first field with a problem, and its problems.

    If a field may have several types, pydantic reports problems for each. The deepest of them count: they
    belong to the type that the value fits best.
    """
    first = problems[0][0]
    below = [field for field, _ in problems if field == first or (first and field.startswith(first + "."))]
    deepest = max(below, key=lambda field: field.count("."))
    return deepest, [problem for field, problem in problems if field == deepest]


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
    app.add_exception_handler(RequestValidationError, _handle_invalid)
    app.add_exception_handler(HTTPException, _handle_http)
    app.add_exception_handler(ClientGone, _handle_disconnect)
    app.add_exception_handler(Exception, _handle_bug)
