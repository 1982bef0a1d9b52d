"""Errors of the server in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

import json
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ...blocks.engine.scheduler import QueueFull, SchedulerStopped
from ...blocks.errors import BifronsError, OptionError, PictureError, PromptError

RETRY_AFTER_SECONDS = 2
CLIENT_GONE = 499
"""What nginx logs for a client that left; nobody receives it."""

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {PictureError: "invalid_image", PromptError: "invalid_prompt", OptionError: "invalid_value"}
_FIELD_ERRORS = {
    "missing": ("missing_required_parameter", "this field is required"),
    "extra_forbidden": ("unknown_parameter", "this server knows no such field"),
}
_LONGEST = 600


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """What every refused request is answered with."""

    error: ErrorBody


class ApiError(Exception):
    """A refusal with its HTTP status; `param` names the field of the request that it is about."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


class ClientGone(Exception):
    """The client has closed the connection; nobody reads an answer."""


def error_content(status: int, message: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    shown = message if len(message) <= _LONGEST else message[:_LONGEST] + "..."
    return {"error": {"message": shown, "type": kind, "param": param, "code": code}}


def error_response(
    status: int,
    message: str,
    code: str | None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    # Escaped to ASCII: a message may quote half a surrogate pair, which UTF-8 can't hold.
    content = json.dumps(error_content(status, message, code, param))
    return Response(content, status, headers=headers, media_type="application/json")


def describe(error: Exception) -> tuple[int, str, str, str | None]:
    """Status, message, code and field of what a request can raise, beside bugs."""
    if isinstance(error, ApiError):
        return error.status, error.message, error.code, error.param
    if isinstance(error, QueueFull):
        return 429, "the server is busy and its queue is full; try again in a moment", "queue_full", None
    if isinstance(error, SchedulerStopped):
        return 503, "the server is stopping and takes no more requests", "stopping", None
    if isinstance(error, BifronsError):
        code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), "invalid_request")
        return 400, str(error), code, None
    raise TypeError(f"not an error of a request: {error!r}")


async def json_only(request: Request) -> None:
    """Refuse a body that isn't declared as JSON: FastAPI would take it for bytes and only say that a
    dictionary is wanted. No page of another site can send this type to a server on its reader's machine."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != "application/json" and not (given.startswith("application/") and given.endswith("+json")):
        shown = f"is {given!r}" if given else "is missing"
        message = f"the content type {shown}; accepted: application/json"
        raise ApiError(415, message, code="unsupported_media_type")


async def _refused(request: Request, error: Exception) -> Response:
    status, message, code, param = describe(error)
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else None
    return error_response(status, message, code, param, headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found: Sequence[dict[str, Any]] = error.errors()
    if found[0]["type"] == "json_invalid":
        return error_response(400, f"the body is no JSON: {found[0]['ctx']['error']}", "invalid_json")
    where, told = _closest([(_field(one, error.body), one) for one in found])
    texts = [_FIELD_ERRORS.get(one["type"], ("invalid_value", str(one["msg"]))) for one in told]
    text = " or ".join(dict.fromkeys(text for _, text in texts))
    return error_response(400, f"{where or 'the body'}: {text}", texts[0][0], where or None)


def _field(error: dict[str, Any], body: Any) -> str:
    """The path of a field as the request spells it: pydantic's has names of its own types in between."""
    path, here, loc = [], body, error["loc"][1:]
    for place, part in enumerate(loc, 1):
        index = isinstance(here, list) and isinstance(part, int)
        found = index or (isinstance(here, dict) and part in here)
        if found:
            here = here[part]
        if found or (place == len(loc) and error["type"] == "missing"):
            path.append(str(part))
    return ".".join(path)


def _closest(found: list[tuple[str, dict[str, Any]]]) -> tuple[str, list[dict[str, Any]]]:
    """The first field with errors, and these. Where a field may be of several kinds, each has its errors:
    then those count that lie deepest, in the kind which the value fits furthest."""
    first = found[0][0]
    inner = [where for where, _ in found if where == first or (first and where.startswith(first + "."))]
    deepest = max(inner, key=lambda where: where.count("."))
    return deepest, [one for where, one in found if where == deepest]


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {400: "invalid_json", 404: "unknown_url", 405: "method_not_allowed"}
    message = f"{request.method} {request.url.path}: {error.detail}"
    headers = dict(error.headers) if error.headers else None
    return error_response(error.status_code, message, codes.get(error.status_code), headers=headers)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _bug(request: Request, error: Exception) -> Response:
    logging.getLogger("bifrons.server").error("a request failed", exc_info=error)
    return error_response(500, "the server failed at this request; its log tells why", "internal_error")


def install(app: FastAPI) -> None:
    """Answer every kind of error in OpenAI's shape."""
    for kind in (ApiError, QueueFull, SchedulerStopped, BifronsError):
        app.add_exception_handler(kind, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientGone, _gone)
    app.add_exception_handler(Exception, _bug)
