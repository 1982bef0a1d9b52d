"""Request bodies: from bytes to a checked object, in bounded time, and off the event loop if large.

Python's JSON parser and pydantic hold the interpreter lock (GIL) until they are done. So what they are given
is bounded before: how deep it is nested, and how many values it has. A valid body stays far below both.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, TypeAdapter, ValidationError

from .errors import ApiError
from .middleware import SMALL_BODY
from .schema_base import UNSUPPORTED

T = TypeVar("T", bound=BaseModel)
Path = tuple[str | int, ...]
"""Keys and indices that lead to a field."""

MAX_VALUES = 100_000
"""Values in a body, about: what the schema allows is half as many, 256 messages of 64 parts."""
MAX_DEPTH = 500
_MAX_NUMBER = 1000
"""Characters of a number; Python itself refuses integers of more than 4,300 digits."""
_FIELD_ERRORS = {
    "missing": ("missing_required_parameter", "this field is required"),
    "extra_forbidden": ("unknown_parameter", "this field is not supported"),
}
_SEPARATORS = bytes.maketrans(b"[]{},:", b" " * 6)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def json_body(model: type[T]) -> Callable[[Request], Awaitable[T]]:
    """A dependency that gives the body of a request as a `model`; it raises an `ApiError` for a bad one."""
    adapter = TypeAdapter(model)
    # One thread, so that of the long holds of the interpreter lock (GIL) none follows another.
    thread = ThreadPoolExecutor(1, thread_name_prefix="bifrons-parse")

    async def read(request: Request) -> T:
        check_content_type(request)
        body = b"".join([piece async for piece in request.stream()])
        if len(body) <= SMALL_BODY:
            return parse_body(adapter, body)
        return await asyncio.get_running_loop().run_in_executor(thread, parse_body, adapter, body)

    return read


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a body that `json_body` reads."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def check_content_type(request: Request) -> None:
    """Raise an `ApiError` with status 415 for a body that isn't declared as JSON, or is compressed.

    This also keeps other web sites from posting to a server on the user's machine: browsers don't send this
    content type across origins without asking the server first.
    """
    if (encoding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        message = f"the body is compressed (Content-Encoding: {encoding[:40]}); accepted: plain JSON"
        raise ApiError(415, message, code="unsupported_media_type")
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json_suffix = content_type.startswith("application/") and content_type.endswith("+json")
    if content_type != "application/json" and not is_json_suffix:
        problem = f"is {content_type!r}" if content_type else "is missing"
        message = f"the content type {problem}; accepted: application/json"
        raise ApiError(415, message, code="unsupported_media_type")


def parse_body(adapter: TypeAdapter[T], body: bytes) -> T:
    """The object in a body. Raises an `ApiError` that names what is wrong with it."""
    value = parse_json(body)
    if value is None:
        code, text = _FIELD_ERRORS["missing"]
        raise ApiError(400, f"the body: {text}", code=code)
    try:
        return adapter.validate_python(value, from_attributes=True)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        raise _invalid(problems, value) from None


def parse_json(body: bytes) -> Any:
    """The value of a JSON text; None for no text. Raises an `ApiError`."""
    if not body:
        return None
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
        _check_structure(text)
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is not valid JSON: {error.msg}", code="invalid_json") from error
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "There was an error parsing the body", code="invalid_json") from error


def _check_structure(text: str) -> None:
    """Raise an `ApiError` for JSON with too many values, too deep nesting or too long numbers.

    A text that is not JSON may pass. Each line of this takes milliseconds for 20 MB.
    """
    text = text.replace("\\\\", "").replace('\\"', "")  # from here on every quote begins or ends a string
    if text.count('"') > 4 * MAX_VALUES:  # two strings, a key and a value
        raise _too_complex(f"more than the accepted {MAX_VALUES:,} values")
    outside = "".join(text.split('"')[::2]).encode("ascii", "replace")
    if outside.count(b",") + outside.count(b"[") + outside.count(b"{") > MAX_VALUES:
        raise _too_complex(f"more than the accepted {MAX_VALUES:,} values")
    brackets = outside.translate(None, _NOT_BRACKETS)
    depth = max(accumulate((1 if bracket in b"[{" else -1 for bracket in brackets), initial=0))
    if depth > MAX_DEPTH:
        raise _too_complex(f"values nested {depth:,} deep; accepted: up to {MAX_DEPTH}")
    if max(map(len, outside.translate(_SEPARATORS).split()), default=0) > _MAX_NUMBER:
        raise _too_complex(f"a number of more than the accepted {_MAX_NUMBER:,} characters")


def _too_complex(what: str) -> ApiError:
    return ApiError(400, f"the body has {what}", code="body_too_complex")


def _invalid(problems: Sequence[Any], body: Any) -> ApiError:
    """The error for pydantic's list of problems, which names the first field that has one."""
    path, problems = _most_specific([(_field_path(problem, body), problem) for problem in problems])
    codes_and_texts = [
        _FIELD_ERRORS.get(problem["type"]) or (_code(problem["type"]), str(problem["msg"]))
        for problem in problems
    ]
    text = " or ".join(dict.fromkeys(text for _, text in codes_and_texts))
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    return ApiError(400, f"{field or 'the body'}: {text}", code=codes_and_texts[0][0], param=field or None)


def _code(kind: str) -> str:
    return kind if kind == UNSUPPORTED else "invalid_value"


def _field_path(problem: dict[str, Any], body: Any) -> Path:
    """Keys and indices of a field in the request, without the type names in pydantic's location."""
    location, is_missing = problem["loc"], problem["type"] == "missing"
    found = _walk(location[:-1] if is_missing else location, body, whole=False)
    if problem["type"] in ("extra_forbidden", UNSUPPORTED):  # the field is there
        found = _walk(location, body, whole=True) or found
    return (*(found or ()), *(location[-1:] if is_missing else ()))


def _walk(location: Sequence[Any], value: Any, *, whole: bool) -> Path | None:
    """The parts of a location that lead into a value. A part that isn't a key or an index there is a type's
    name, and so may be one that is: `whole` demands that the last part leads somewhere."""
    if not location:
        return ()
    part, rest = location[0], location[1:]
    if isinstance(part, int) if isinstance(value, list) else isinstance(value, dict) and part in value:
        below = _walk(rest, value[part], whole=whole)
        if below is not None:
            return (part, *below)
    return None if whole and not rest else _walk(rest, value, whole=whole)


def _most_specific(problems: list[tuple[Path, dict[str, Any]]]) -> tuple[Path, list[dict[str, Any]]]:
    """The first field with a problem, and its problems.

    If a field may have several types, pydantic reports problems for each. The deepest of them count: they
    belong to the type that the value fits best.
    """
    first = problems[0][0]
    deepest = max((path for path, _ in problems if path[: len(first)] == first), key=len)
    return deepest, [problem for path, problem in problems if path == deepest]
