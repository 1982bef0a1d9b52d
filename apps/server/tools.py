"""Tools: their descriptions as a prompt, the grammar of calls, and messages with calls and results as text.

These models weren't trained to call tools. A call is written as `<tool_call>{"name": ..., "arguments": ...}
</tool_call>`, on one line; if the request names the function, only its arguments are.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from ...blocks.errors import OptionError
from ...blocks.structured_output import OutputFormat, lark_text
from . import schema
from .errors import invalid_value
from .form_schema import FunctionDefinition, NamedToolChoice, ToolCall

MAX_CALLS = 8
"""Most calls of one answer."""
CALL, CALL_END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ToolUse:
    """The functions that an answer may call: `choice` says whether it may, must, or must call the only one
    that is left (`named`), and `parallel` whether it may hold several calls."""

    functions: Sequence[FunctionDefinition]
    choice: Literal["auto", "required", "named"]
    parallel: bool
    indices: Sequence[int]
    """Where the functions stand in the request's `tools`."""

    @classmethod
    def of(cls, body: schema.ChatRequest) -> "ToolUse | None":
        """The use of a request's tools; None if it has none or forbids them. Raises an `ApiError`."""
        functions, choice = [tool.function for tool in body.tools or ()], body.tool_choice
        names = [function.name for function in functions]
        if len(set(names)) < len(names):
            raise invalid_value("two functions have the same name; accepted: different names", "tools")
        parallel = body.parallel_tool_calls is not False
        if isinstance(choice, NamedToolChoice):
            if (name := choice.function.name) not in names:
                known = ", ".join(names) or "none, as the request has no tools"
                raise invalid_value(
                    f"no tool is called {name!r}; accepted: {known}", "tool_choice.function.name"
                )
            index = names.index(name)
            return cls([functions[index]], "named", False, [index])
        if choice == "required" and not functions:
            raise invalid_value("'required' needs tools; the request has none", "tool_choice")
        if not functions or choice == "none":
            return None
        return cls(functions, choice or "auto", parallel, range(len(functions)))

    @property
    def instructions(self) -> str:
        """What the prompt says about the functions."""
        lines = [json.dumps(_description(function), ensure_ascii=False) for function in self.functions]
        if self.choice == "named":
            text = "Answer with the arguments of this function, as a JSON object and nothing else:"
            return f"{text}\n{lines[0]}"
        must = "Call" if self.choice == "required" else "If it helps, call"
        several = "one or more" if self.parallel else "one"
        example = f'{CALL}{{"name": "...", "arguments": {{...}}}}{CALL_END}'
        return "\n".join(
            [f"{must} {several} of these functions:", *lines, f"Write a call as {example} and nothing else."]
        )

    def output_format(self, answer: OutputFormat | None) -> OutputFormat:
        """What an answer must match; `answer` is a JSON schema's format for one without calls, if the request
        has one. Raises an `ApiError`."""
        formats = []
        for index, function in zip(self.indices, self.functions, strict=True):
            with option_errors(f"tools[{index}].function.parameters"):
                formats.append(OutputFormat.json_schema(_parameters(function)))
        if self.choice == "named":
            return formats[0]
        repeats = f'("\\n" call){{0,{MAX_CALLS - 1}}}' if self.parallel else ""
        rules = [
            "start: calls" + (" | answer" if self.choice == "auto" else ""),
            f"calls: call {repeats}",
            "call: " + " | ".join(f"call_{number}" for number in range(len(formats))),
        ]
        for number, (function, made) in enumerate(zip(self.functions, formats, strict=True)):
            head, end = lark_text(call_head(function.name)), lark_text("}" + CALL_END)
            rules += [f"call_{number}: {head} json_{number} {end}", f"json_{number}: {_json_rule(made)}"]
        if self.choice == "auto":
            # A text that doesn't begin as a call does.
            rules.append("answer: " + (_json_rule(answer) if answer else r"/(\s*[^<\s](?s:.*))?/"))
        with option_errors("tools"):
            return OutputFormat.grammar("\n".join(rules))


def call_head(name: str) -> str:
    """The text of a call up to its arguments."""
    return f'{CALL}{{"name": {json.dumps(name)}, "arguments": '


@contextmanager
def option_errors(param: str) -> Iterator[None]:
    """Turn an `OptionError` into an `ApiError` that names the field."""
    try:
        yield
    except OptionError as error:
        raise invalid_value(str(error), param) from error


def _parameters(function: FunctionDefinition) -> dict[str, Any]:
    """The JSON schema of a function's arguments: an object, of no properties if the schema has none."""
    given = function.parameters or {}
    if given.get("type", "object") != "object":
        raise OptionError(f"its type is {json.dumps(given['type'])[:80]}; accepted: an object")
    return {"type": "object", "properties": {}, **given}


def _description(function: FunctionDefinition) -> dict[str, Any]:
    fields = {"name": function.name, "description": function.description, "parameters": function.parameters}
    return {name: value for name, value in fields.items() if value}


def _json_rule(json_format: OutputFormat) -> str:
    """The body of a Lark rule for JSON of a schema, with what the format says about white space."""
    (grammar,) = json.loads(json_format.source)["grammars"]
    return f"%json {json.dumps(grammar['json_schema'])}"


def plain_messages(messages: Sequence[Any], use: ToolUse | None) -> list[Any]:
    """The messages with calls, results and the description of the tools as text, of the roles that models
    know: results are the user's, the description is the system's."""
    names: dict[str | None, str] = {}
    plain: list[Any] = []
    for message in messages:
        if message.role == "assistant" and message.tool_calls:
            names |= {call.id: call.function.name for call in message.tool_calls}
            text = "\n".join(map(_call_text, message.tool_calls))
            message = _with_text(message, text)
        elif message.role == "tool":
            name = names.get(message.tool_call_id) or message.name
            result = f"Result of {name}:\n" if name else "Result:\n"
            message = schema.UserMessage.model_construct(role="user", content=result + _text(message.content))
        plain.append(message)
    if use is not None:
        system = schema.SystemMessage.model_construct(role="system", content=None)
        if plain[0].role in ("system", "developer"):
            system = plain.pop(0)
        plain.insert(0, _with_text(system, use.instructions))
    return plain


def _call_text(call: ToolCall) -> str:
    return f"{call_head(call.function.name)}{call.function.arguments}}}{CALL_END}"


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content or ())


def _with_text(message: Any, text: str) -> Any:
    """The message with a text after its own, on a line of its own."""
    own = _text(message.content)
    return message.model_copy(update={"content": f"{own}\n\n{text}" if own.strip() else text})
