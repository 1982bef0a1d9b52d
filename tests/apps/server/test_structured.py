"""Answers of a given form and calls of tools: the official client, and a server with both families."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

from ...models import SHAPES_JANUS, SHAPES_VL2

MODELS = ("shapes-janus", "shapes-vl2")


class Seen(BaseModel):
    """What is in the picture."""

    color: Literal["red", "green", "blue", "yellow"]
    number: int
    sure: bool | None


SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}, "shape": {"enum": ["circle", "square"]}},
    "required": ["color", "shape"],
    "additionalProperties": False,
}
DESCRIBE: Any = {"type": "function", "function": {"name": "describe", "parameters": SCHEMA}}
PAINT: Any = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paint a shape.",
        "parameters": {"type": "object", "properties": {"what": {"enum": ["it"]}}, "required": ["what"]},
    },
}
NAMED: Any = {"type": "function", "function": {"name": "describe"}}
ASK: Any = {"messages": [{"role": "user", "content": "What color is it?"}], "max_tokens": 100}
each_model = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(scope="module")
def server(start_server):
    return start_server("-m", SHAPES_JANUS, "-m", SHAPES_VL2, "--rows", 8, "--context", 1024)


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return server.client()


def answer(client: openai.OpenAI, **fields: Any) -> Any:
    extra = {name: fields.pop(name) for name in [*fields] if name.startswith(("guided", "structured"))}
    return client.chat.completions.create(**{**ASK, **fields}, extra_body=extra).choices[0]


FORMS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "guided_choice": ({"guided_choice": ["red", "light blue"]}, {"red", "light blue"}),
    "guided_regex": ({"guided_regex": " (red|blue) "}, {" red ", " blue "}),
    "guided_grammar": ({"guided_grammar": 'start: "a" ("b" | "c")'}, {"ab", "ac"}),
    "GBNF": ({"guided_grammar": 'root ::= "a" ("b" | "c")'}, {"ab", "ac"}),
    "guided_json": ({"guided_json": {"enum": ["x", 2]}}, {'"x"', "2"}),
    "a text": ({"guided_json": '{"const": [1, {}]}'}, {"[1, {}]"}),
    "json": ({"structured_outputs": {"json": {"const": None}}}, {"null"}),
    "regex": ({"structured_outputs": {"regex": "[0-9]"}}, set("0123456789")),
    "choice": ({"structured_outputs": {"choice": ["one"]}}, {"one"}),
    "grammar": ({"structured_outputs": {"grammar": 'start: "x"', "regex": None}}, {"x"}),
    "json_object with a schema": (
        {"response_format": {"type": "json_object", "schema": {"const": {"a": 1}}}},
        {'{"a": 1}'},
    ),
}


@each_model
def test_answers_have_the_form_that_is_asked_for(client, model):
    """Together in one batch, beside a free answer, which stays what it is alone."""
    free = answer(client, model=model).message.content
    with ThreadPoolExecutor(8) as pool:
        beside = pool.submit(answer, client, model=model)
        made = [pool.submit(answer, client, model=model, **fields) for fields, _ in FORMS.values()]
        for name, one in zip(FORMS, made, strict=True):
            choice = one.result()
            assert choice.message.content in FORMS[name][1], name
            assert choice.finish_reason == "stop"
        assert beside.result().message.content == free


@each_model
def test_parse_gives_objects(client, model):
    reply = client.chat.completions.parse(**ASK, model=model, response_format=Seen)
    assert isinstance(reply.choices[0].message.parsed, Seen)
    with client.chat.completions.stream(**ASK, model=model, response_format=Seen) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        last = stream.get_final_completion().choices[0].message
    assert last.parsed == reply.choices[0].message.parsed
    assert len(deltas) > 3
    assert "".join(deltas) == last.content
    two = client.chat.completions.parse(
        **ASK, model=model, response_format=Seen, n=2, temperature=1.5, seed=1
    )
    assert all(isinstance(choice.message.parsed, Seen) for choice in two.choices)


def test_an_answer_that_is_cut_off_says_so(client):
    choice = answer(client, model=MODELS[0], guided_regex="[a-z]{50}", max_tokens=3)
    assert choice.finish_reason == "length"
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**{**ASK, "max_tokens": 5}, model=MODELS[0], response_format=Seen)


def test_json_objects(client):
    """These models don't know when an object is done: some seed ends it."""
    fields: Any = {"model": MODELS[1], "temperature": 1.5, "response_format": {"type": "json_object"}}
    with ThreadPoolExecutor(8) as pool:
        tries = [pool.submit(answer, client, **fields, seed=seed, max_tokens=12) for seed in range(16)]
        choices = [one.result() for one in tries]
    texts = [choice.message.content for choice in choices if choice.finish_reason == "stop"]
    assert texts
    assert all(isinstance(json.loads(text), dict) for text in texts)


CHOICES: list[Any] = ["required", NAMED]


@each_model
@pytest.mark.parametrize("choice", CHOICES, ids=["required", "named"])
def test_calls_are_the_same_whole_and_streamed(client, model, choice):
    ask: Any = {**ASK, "model": model, "tools": [DESCRIBE], "tool_choice": choice}
    whole = client.chat.completions.create(**ask, parallel_tool_calls=False)
    message = whole.choices[0].message
    assert whole.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    (call,) = message.tool_calls
    assert call.function.name == "describe"
    assert set(json.loads(call.function.arguments)) == {"color", "shape"}
    with client.chat.completions.stream(**ask, parallel_tool_calls=False) as stream:
        events = [event.type for event in stream]
        streamed = stream.get_final_completion().choices[0]
    assert events.count("tool_calls.function.arguments.delta") > 3
    assert streamed.finish_reason == "tool_calls"
    (again,) = streamed.message.tool_calls
    assert (again.function.name, again.function.arguments) == (call.function.name, call.function.arguments)
    assert again.id.startswith("call_")
    assert again.id != call.id


@each_model
def test_a_loop_of_an_agent(client, model):
    """A call, its result, and an answer, with the server's own messages sent back."""
    messages: list[Any] = [{"role": "user", "content": "What color is it?"}]
    ask: Any = {"model": model, "messages": messages, "tools": [DESCRIBE, PAINT], "max_tokens": 200}
    first = client.chat.completions.create(**ask, tool_choice="required").choices[0]
    assert first.finish_reason == "tool_calls"
    messages.append(first.message)
    for call in first.message.tool_calls:
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "red"})
    last = client.chat.completions.create(**{**ask, "max_tokens": 8}).choices[0]
    assert last.message.content
    assert last.message.tool_calls is None
    assert (
        client.chat.completions.create(**{**ask, "max_tokens": 8}, tool_choice="none")
        .choices[0]
        .message.content
    )


def test_tools_beside_a_form(client):
    """An answer in words, if there are any, has the form."""
    ask: Any = {"model": MODELS[0], "tools": [DESCRIBE], "response_format": {"type": "json_schema"}}
    ask["response_format"]["json_schema"] = {"name": "x", "schema": {"enum": ["a", "b"]}}
    choice = answer(client, **ask)
    assert choice.message.content in ('"a"', '"b"') or choice.message.tool_calls


def nested(levels: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


HOSTILE: dict[str, dict[str, Any]] = {
    "enum of 90,000": {"guided_json": {"enum": [f"value {i}" for i in range(90_000)]}},
    "levels": {"guided_json": nested(120)},
    "endless": {"guided_json": {"$ref": "#"}},
    "a file": {"guided_json": {"$ref": "file:///etc/passwd"}},
    "an address": {"guided_json": {"$ref": "http://127.0.0.1:1/x"}},
    "no type": {"guided_json": {"type": "x"}},
    "not": {"guided_json": {"not": {}}},
    "no JSON": {"guided_json": "{"},
    "a large grammar": {"guided_grammar": "root ::= " + '"x" ' * 20_000},
    "parentheses": {"guided_grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000},
    "no grammar": {"guided_grammar": "x"},
    "GBNF that ends": {"guided_grammar": "a ::="},
    "look-ahead": {"guided_regex": "a(?=b)"},
    "no regex": {"guided_regex": "("},
    "an empty regex": {"guided_regex": ""},
    "a large regex": {"guided_regex": "a" * 70_000},
    "no choices": {"guided_choice": []},
    "an empty choice": {"guided_choice": ["a", ""]},
    "1001 choices": {"guided_choice": ["a"] * 1001},
    "optional": {"guided_json": {"properties": {f"p{i}": {"type": "integer"} for i in range(1500)}}},
}
COSTLY: dict[str, dict[str, Any]] = {
    "repeats": {"guided_regex": "((((a|b)*c){50}){50}){50}"},
    "states": {"guided_regex": "(.*a.{20}){20}"},
    "pattern": {"guided_json": {"type": "string", "pattern": "(a{1,1000}){1,1000}"}},
    "long": {"guided_json": {"type": "string", "minLength": 1_000_000}},
    "items": {"guided_json": {"type": "array", "minItems": 10**9}},
    "all of": {"guided_json": {"allOf": [{"properties": {f"p{i}": {}}} for i in range(200)]}},
    "tree": {"guided_json": {"type": "array", "items": {"$ref": "#"}}},
    "recursion": {"guided_grammar": 'start: start start | "a"'},
    "1000 choices": {"guided_choice": [f"{i}" + "x" * 50 for i in range(1000)]},
}


def test_hostile_forms_are_refused_or_cheap_and_delay_nobody(server, client):
    def attempt(fields: dict[str, Any]) -> httpx.Response:
        body = {**ASK, "model": MODELS[0], "max_tokens": 8, **fields}
        return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)

    before = answer(client, model=MODELS[0], max_tokens=8).message.content
    with ThreadPoolExecutor(2) as pool:
        tried = {name: pool.submit(attempt, fields) for name, fields in {**HOSTILE, **COSTLY}.items()}
        waits = []
        while not all(one.done() for one in tried.values()):
            start = time.monotonic()
            assert httpx.get(f"{server.url}/health", timeout=30).status_code == 200
            waits.append(time.monotonic() - start)
            time.sleep(0.05)
    assert max(waits) < 5
    for name, one in tried.items():
        reply = one.result()
        assert reply.status_code in ((400,) if name in HOSTILE else (200, 400)), (name, reply.text)
        if reply.status_code == 400:
            (field,) = {**HOSTILE, **COSTLY}[name]
            assert reply.json()["error"]["param"] in (field, None), name
            assert len(reply.text) < 1000
    assert answer(client, model=MODELS[0], max_tokens=8).message.content == before
    assert server.metric("rows_promised", MODELS[0]) == 0


def test_a_wrong_schema_of_a_tool_is_named_by_its_place(client):
    wrong = {
        "type": "function",
        "function": {"name": "x", "parameters": {"properties": {"a": {"type": "y"}}}},
    }
    with pytest.raises(openai.BadRequestError) as refused:
        answer(client, model=MODELS[0], tools=[DESCRIBE, wrong])
    assert refused.value.param == "tools[1].function.parameters"
