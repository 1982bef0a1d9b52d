"""Tools without a server: grammar and prompt, reading calls out of a text, messages with calls as text."""

import json
from typing import Any

import pytest
from bifrons.apps.server.bodies import parse_body
from bifrons.apps.server.errors import ApiError
from bifrons.apps.server.schema import ChatRequest
from bifrons.apps.server.structured import check_form
from bifrons.apps.server.tool_calls import CallParser
from bifrons.apps.server.tools import ToolUse, plain_messages
from bifrons.blocks.structured_output import OutputFormat
from bifrons.tokenizers.text import TextTokenizer
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "of today", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALLED = (
    '<tool_call>{"name": "weather", "arguments": {"city": "} {\\"[</tool_call>"}}</tool_call>\n'
    '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
)


def request(**fields: Any) -> ChatRequest:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [WEATHER, CLOCK],
        **fields,
    }
    parsed = parse_body(TypeAdapter(ChatRequest), json.dumps(body).encode())
    check_form(parsed)
    return parsed


def use_of(**fields: Any) -> ToolUse:
    use = ToolUse.of(request(**fields))
    assert use is not None
    return use


def matches(output_format: OutputFormat, text: str, tokenizer: TextTokenizer) -> bool:
    """Whether a whole text is an answer of the format."""
    matcher = output_format.matcher(tokenizer.vocabulary, 1000)
    ids = tokenizer.encode(text, bos=False)
    for number, token in enumerate([*ids, tokenizer.eos_id]):
        if not matcher.mask_W[token // 32] >> token % 32 & 1:
            return False
        if matcher.accept(token):
            return number >= len(ids) - 1
    return False


@pytest.fixture(scope="module")
def tokenizer(janus_mini) -> TextTokenizer:
    return TextTokenizer.from_folder(janus_mini)


def read(use: ToolUse, pieces: list[str]) -> tuple[str, list[tuple[str, str]], list[Any]]:
    """The text, the calls, and the calls added up from their deltas."""
    parser, text, added = CallParser(use), "", {}
    for number, piece in enumerate(pieces):
        more, deltas = parser.feed(piece, last=number == len(pieces) - 1)
        text += more
        for delta in deltas:
            if delta.id is not None:
                assert delta.index == len(added)
                added[delta.index] = [delta.id, delta.function.name, ""]
            added[delta.index][2] += delta.function.arguments
    calls = [(call.function.name, call.function.arguments) for call in parser.calls]
    assert list(added.values()) == [[call.id, *pair] for call, pair in zip(parser.calls, calls, strict=True)]
    return text, calls, parser.calls


@given(st.data())
def test_calls_do_not_depend_on_how_the_text_is_cut(data):
    text = data.draw(st.sampled_from([CALLED, "Not <tool_call>", "", "<b>"]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    expected = [("weather", '{"city": "} {\\"[</tool_call>"}'), ("clock", "{}")] if text == CALLED else []
    assert read(use_of(), pieces)[:2] == ("" if expected else text, expected)


def test_calls_that_were_cut_off_are_reported_as_far_as_they_go():
    assert read(use_of(), [CALLED[:20]])[:2] == ("", [])
    assert read(use_of(), [CALLED[: CALLED.index("} {")]])[1] == [("weather", '{"city": "')]
    ids = [call.id for call in read(use_of(), [CALLED])[2]]
    assert len(set(ids)) == 2
    assert all(one.startswith("call_") for one in ids)


def test_a_named_function_is_answered_by_its_arguments():
    use = use_of(tool_choice={"type": "function", "function": {"name": "weather"}})
    assert read(use, ['{"ci', 'ty": "Rome"}', ""])[:2] == ("", [("weather", '{"city": "Rome"}')])
    assert "weather" in use.instructions
    assert "clock" not in use.instructions


def test_the_grammar_of_each_choice(tokenizer):
    first, second = CALLED.split("\n")
    named = {"type": "function", "function": {"name": "clock"}}
    accepted = {
        "auto": (use_of(), [first, CALLED, "It rains.", " {1}", "", "a\nb"], ["<tool_call>{}", "<x>"]),
        "required": (use_of(tool_choice="required"), [second, CALLED], ["It rains.", "", first + second]),
        "one": (use_of(tool_choice="required", parallel_tool_calls=False), [first], [CALLED, ""]),
        "named": (use_of(tool_choice=named), ["{}"], ['{"city": "x"}', second, ""]),
    }
    for use, right, wrong in accepted.values():
        made = use.output_format(None)
        for text in right:
            assert matches(made, text, tokenizer), (use.choice, text)
        for text in wrong:
            assert not matches(made, text, tokenizer), (use.choice, text)
    answer = OutputFormat.json_schema({"enum": ["x"]})
    assert matches(use_of().output_format(answer), '"x"', tokenizer)
    assert matches(use_of().output_format(answer), first, tokenizer)
    assert not matches(use_of().output_format(answer), "x", tokenizer)


def test_references_in_parameters_stay_inside_them(tokenizer):
    parameters = {
        "properties": {"a": {"$ref": "#/$defs/number"}},
        "required": ["a"],
        "$defs": {"number": {"type": "integer"}},
    }
    tools = [CLOCK, {"type": "function", "function": {"name": "add", "parameters": parameters}}]
    made = use_of(tools=tools, tool_choice="required").output_format(None)
    assert matches(made, '<tool_call>{"name": "add", "arguments": {"a": 5}}</tool_call>', tokenizer)
    assert not matches(made, '<tool_call>{"name": "add", "arguments": {"a": "5"}}</tool_call>', tokenizer)
    assert not matches(
        made, '<tool_call>{"name": "add", "arguments": {"a": 5, "b": 1}}</tool_call>', tokenizer
    )


FORM = {"type": "json_schema", "json_schema": {"schema": {}}}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [CLOCK, CLOCK]}, "tools", "same name"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "needs tools"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice.function.name",
            "clock",
        ),
        ({"tool_choice": "any"}, "tool_choice", "required"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "function"),
        ({"guided_regex": "a"}, "guided_regex", "excludes tools"),
        ({"tool_choice": "required", "response_format": FORM}, "tool_choice", "auto"),
        ({"guided_json": {}, "response_format": FORM}, "guided_json", "response_format"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex", "one of them"),
        ({"structured_outputs": {"xml": "a"}}, "structured_outputs.xml", "not supported"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "required",
        ),
    ],
)
def test_contradictions_and_missing_keys_are_named(fields, param, words):
    with pytest.raises(ApiError) as refused:
        request(**fields)
    assert refused.value.param == param
    assert words in refused.value.message
    assert refused.value.status == 400


def test_parameters_that_are_no_objects_are_refused_by_their_place():
    tools = [CLOCK, {"type": "function", "function": {"name": "x", "parameters": {"type": "string"}}}]
    with pytest.raises(ApiError, match="an object") as refused:
        use_of(tools=tools).output_format(None)
    assert refused.value.param == "tools[1].function.parameters"


def test_without_tools_or_with_none_an_answer_is_free():
    for fields in (
        {"tools": []},
        {"tools": None},
        {"tool_choice": "none"},
        {"tools": [], "tool_choice": "auto"},
    ):
        assert ToolUse.of(request(**fields)) is None


def test_calls_and_results_become_text():
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "name": "clock", "content": [{"type": "text", "text": "noon"}]},
        {"role": "tool", "content": "?"},
    ]
    body = request(messages=messages)
    plain = plain_messages(body.messages, ToolUse.of(body))
    assert [message.role for message in plain] == ["system", "user", "assistant", "user", "user", "user"]
    assert plain[0].content.startswith("Be brief.\n\nIf it helps, call one or more of these functions:\n")
    assert '{"name": "weather", "description": "of today", "parameters": {"type"' in plain[0].content
    written = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
    texts = ["Weather?", written, "Result of weather:\nrain", "Result of clock:\nnoon", "Result:\n?"]
    assert [message.content for message in plain[1:]] == texts
    assert plain_messages(body.messages[1:2], None) == body.messages[1:2]
    assert plain_messages(body.messages[1:2], ToolUse.of(body))[0].role == "system"
