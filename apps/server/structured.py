"""The form of an answer that a request asks for: `response_format`, tools, and vLLM's `guided_*` and
`structured_outputs`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from llguidance.gbnf_to_lark import any_to_lark

from ...blocks.errors import OptionError
from ...blocks.structured_output import MAX_FORMAT, OutputFormat
from ...blocks.token_masks import OutputMatcher
from ...text.thinking import thought_format
from ...tokenizers.text import TextTokenizer
from .errors import invalid_value
from .form_schema import JsonObjectFormat, JsonSchemaFormat
from .schema import ChatRequest
from .tools import ToolUse, option_errors


class Form(NamedTuple):
    """A form that a field of the request asks for, and what makes an `OutputFormat` of its value."""

    param: str
    value: Any
    make: Callable[[Any], OutputFormat]


def _forms(body: ChatRequest) -> Iterator[Form]:
    asked, guided = body.response_format, body.structured_outputs
    if isinstance(asked, JsonSchemaFormat):
        param = "response_format.json_schema.schema"
        yield Form(param, asked.json_schema.schema_, OutputFormat.json_schema)
    elif isinstance(asked, JsonObjectFormat):
        schema = {"type": "object"} if asked.schema_ is None else asked.schema_
        yield Form("response_format.schema", schema, OutputFormat.json_schema)
    forms = [
        Form("guided_json", body.guided_json, OutputFormat.json_schema),
        Form("guided_regex", body.guided_regex, OutputFormat.regex),
        Form("guided_choice", body.guided_choice, OutputFormat.choices),
        Form("guided_grammar", body.guided_grammar, _grammar),
    ]
    if guided is not None:
        forms += [
            Form("structured_outputs.json", guided.json_, OutputFormat.json_schema),
            Form("structured_outputs.regex", guided.regex, OutputFormat.regex),
            Form("structured_outputs.choice", guided.choice, OutputFormat.choices),
            Form("structured_outputs.grammar", guided.grammar, _grammar),
        ]
        if guided.json_object:
            yield Form("structured_outputs.json_object", {"type": "object"}, OutputFormat.json_schema)
    yield from (form for form in forms if form.value is not None)


def _grammar(text: str) -> OutputFormat:
    """The format of a grammar in Lark, or in GBNF, whose rules have `::=`."""
    if len(text) <= MAX_FORMAT and "::=" in text:
        try:
            text = any_to_lark(text)
        except Exception as error:
            raise OptionError(f"the grammar can't be read: {error}") from error
    return OutputFormat.grammar(text)


def check_form(body: ChatRequest) -> None:
    """Raise an `ApiError` if the request asks for two forms, or for tools that it doesn't have."""
    forms = list(_forms(body))
    if len(forms) > 1:
        raise invalid_value(f"it excludes {forms[0].param}; give one of them", forms[1].param)
    tools = ToolUse.of(body)
    if tools is None or not forms:
        return
    if tools.choice != "auto":
        raise invalid_value(f"it excludes {forms[0].param}; accepted with it: 'auto', 'none'", "tool_choice")
    if forms[0].make != OutputFormat.json_schema:
        raise invalid_value("it excludes tools; accepted with them: a JSON schema", forms[0].param)


def asks_for_form(body: ChatRequest) -> bool:
    """Whether the answers to a request must have some form."""
    return next(_forms(body), None) is not None or ToolUse.of(body) is not None


def make_matchers(
    body: ChatRequest, tokenizer: TextTokenizer, in_thought: bool, count: int, max_new_tokens: int
) -> Sequence[OutputMatcher | None]:
    """What holds each of `count` answers to the form that the request asks for, after a thought of limited
    length if they begin `in_thought`; None for free ones.

    Compiling may take a second. Raises an `ApiError` that names the field.
    """
    form, tools = next(_forms(body), None), ToolUse.of(body)
    param, made = "tools", None
    if form is not None:
        param = form.param
        with option_errors(param):
            made = form.make(form.value)
    if tools is not None:
        made = tools.output_format(made)
    with option_errors("max_thinking_tokens"):
        made = thought_format(tokenizer, in_thought, body.max_thinking_tokens, made)
    if made is None:
        return [None] * count
    with option_errors(param):
        return [made.matcher(tokenizer.vocabulary, max_new_tokens) for _ in range(count)]
