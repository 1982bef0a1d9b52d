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

T = TypeVar("T", bound=BaseModel)

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
    """Raise an `ApiError` with status 415 for a body that isn't declared as JSON.

    This also keeps other web sites from posting to a server on the user's machine: browsers don't send this
    content type across origins without asking the server first.
    """
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
    field, problems = _most_specific([(_field_path(problem, body), problem) for problem in problems])
    codes_and_texts = [
        _FIELD_ERRORS.get(problem["type"], ("invalid_value", str(problem["msg"]))) for problem in problems
    ]
    text = " or ".join(dict.fromkeys(text for _, text in codes_and_texts))
    return ApiError(400, f"{field or 'the body'}: {text}", code=codes_and_texts[0][0], param=field or None)


def _field_path(problem: dict[str, Any], body: Any) -> str:
    """The dotted path of a field in the request, without the type names in pydantic's location."""
    path, value, location = [], body, problem["loc"]
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
