"""Fields that change nothing: each in the table passes with its values; others are refused by name."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bifrons
import pytest
from bifrons.apps.server import schema
from bifrons.apps.server.bodies import parse_body
from bifrons.apps.server.errors import ApiError
from bifrons.apps.server.neutral_fields import TABLE, table_text
from bifrons.apps.server.text_schema import CompletionRequest, ResponsesRequest
from pydantic import TypeAdapter

TEXT, PICTURE = {"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "x"}}
SAMPLES = {str: ["", "x" * 256], bool: [True, False], dict: [{}, {"a": {"b": [1]}}]}
TOO_LONG = "x" * 257
OTHERS: list[Any] = [["x"], "other", TOO_LONG, 7.5, True, False, 0, 1, "", {"a": 1}, [None]]


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}]}


CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
INPUT = [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": "x"}]
RESPONSE = {"model": "m", "input": [{"role": "user", "content": INPUT}]}
BODIES: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "ChatRequest": (CHAT, ()),
    "ImageRequest": ({"prompt": "x"}, ()),
    "CompletionRequest": ({"model": "m", "prompt": "x"}, ()),
    "ResponsesRequest": ({"model": "m", "input": "x"}, ()),
    "TextOptions": ({"model": "m", "input": "x", "text": {}}, ("text",)),
    "InputMessage": (RESPONSE, ("input", 0)),
    "InputText": (RESPONSE, ("input", 0, "content", 0)),
    "InputImage": (RESPONSE, ("input", 0, "content", 1)),
    "StreamOptions": ({**CHAT, "stream_options": {}}, ("stream_options",)),
    "SystemMessage": ({"model": "m", "messages": [{"role": "system", "content": "x"}]}, ("messages", 0)),
    "UserMessage": (CHAT, ("messages", 0)),
    "AssistantMessage": (
        {"model": "m", "messages": [{"role": "assistant", "content": "x"}]},
        ("messages", 0),
    ),
    "ToolMessage": ({"model": "m", "messages": [{"role": "tool", "content": "x"}]}, ("messages", 0)),
    "TextPart": (user(PICTURE, TEXT), ("messages", 0, "content", 1)),
    "ImagePart": (user(TEXT, PICTURE), ("messages", 0, "content", 1)),
    "ImageAddress": (user(PICTURE), ("messages", 0, "content", 0, "image_url")),
}
"""A body with each kind of object, and where that is."""


def parsed(name: str, changes: dict[str, Any]) -> Any:
    """The parsed body with such an object, which has further fields."""
    body, path = BODIES[name]
    body = target = json.loads(json.dumps(body))
    for part in path:
        target = target[part]
    target |= changes
    kinds = {"messages": schema.ChatRequest, "input": ResponsesRequest, "prompt": CompletionRequest}
    kind = next(kind for key, kind in kinds.items() if key in body)
    model = schema.ImageRequest if name == "ImageRequest" else kind
    return parse_body(TypeAdapter(model), json.dumps(body).encode())


def rows() -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    for row in TABLE:
        for name in row.objects.split():
            yield from ((name, field, row.values) for field in row.fields.split())


def test_what_changes_nothing_passes():
    plain = {name: parsed(name, {}) for name in BODIES}
    for name, field, values in rows():
        for value in (None, *values):
            for one in SAMPLES[value] if isinstance(value, type) else [value]:
                assert parsed(name, {field: one}) == plain[name], (name, field, one)


def test_what_would_change_the_answer_is_refused_by_its_own_path():
    for name, field, values in rows():
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in BODIES[name][1])
        accepted = [json.dumps(value) for value in values if not isinstance(value, type)]
        for value in OTHERS:
            if json.dumps(value) in accepted or (type(value) in values and value != TOO_LONG):
                continue
            with pytest.raises(ApiError) as refused:
                parsed(name, {field: value})
            assert refused.value.param == f"{path}.{field}".removeprefix(".")
            assert refused.value.code == "unsupported_value"
            assert "accepted: null" in refused.value.message


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("ChatRequest", "k"),
        ("StreamOptions", "stream_options.k"),
        ("UserMessage", "messages[0].k"),
        ("TextPart", "messages[0].content[1].k"),
        ("ImageAddress", "messages[0].content[0].image_url.k"),
    ],
)
def test_unknown_fields_are_named_by_their_own_path(name, path):
    with pytest.raises(ApiError) as refused:
        parsed(name, {"k": 1, "l": 2})
    assert (refused.value.param, refused.value.code) == (path, "unknown_parameter")
    assert parsed(name, {"k": None}) == parsed(name, {})


def test_a_field_beside_a_key_that_is_called_as_its_type():
    body = {**TEXT, "cache_control": {"type": "ephemeral"}}
    with pytest.raises(ApiError) as refused:
        parsed("UserMessage", {"content": [PICTURE, body], "name": "user"})
    assert refused.value.param == "messages[0].content[1].cache_control"


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": ""},
        {"stop": []},
        {"n": None},
        {"seed": None},
        {"logprobs": False, "top_logprobs": 0},
        {"stream_options": {"include_usage": False}},
        {"stream_options": {"include_usage": None}},
        {"frequency_penalty": 0, "presence_penalty": None},
        {"response_format": {"type": "text"}},
        {"temperature": None, "top_p": None, "max_tokens": None, "max_completion_tokens": None},
    ],
)
def test_fields_of_the_schema_without_effect(fields):
    assert parsed("ChatRequest", fields) is not None


def test_the_documentation_shows_the_table():
    page = Path(bifrons.__file__).parent / "docs" / "server.md"
    assert table_text() in page.read_text(encoding="utf-8")
