"""Parts of request bodies that ask for an answer of a given form, and tools (with OpenAI's names)."""

from typing import Annotated, Any, Literal

from pydantic import Field

from .schema_base import Request, ShortText, Text

MAX_TOOLS = 128  # as in OpenAI's API

FunctionName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")]


class PlainFormat(Request):
    """The response format of plain text (`ResponseFormatText`)."""

    type: Literal["text"]


class JsonObjectFormat(Request):
    """The response format of any JSON object (`ResponseFormatJSONObject`), or of one with a schema, as other
    servers have it."""

    type: Literal["json_object"]
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class NamedSchema(Request):
    """A JSON schema (`JSONSchema`)."""

    name: ShortText | None = Field(None, description="Changes nothing.")
    description: Text | None = Field(None, description="Changes nothing.")
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="Changes nothing: every answer is valid.")


class JsonSchemaFormat(Request):
    """The response format of JSON that is valid against a schema (`ResponseFormatJSONSchema`)."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class StructuredOutputs(Request):
    """The form of the answer in vLLM's terms; one field is given."""

    json_: dict[str, Any] | Text | None = Field(None, alias="json")
    regex: Text | None = None
    choice: list[Text] | None = None
    grammar: Text | None = None
    json_object: bool | None = None


class FunctionDefinition(Request):
    """A function that may be called (`FunctionDefinition`)."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema. Default: no parameters.")
    strict: bool | None = Field(None, description="Changes nothing: arguments are always valid.")


class Tool(Request):
    """A tool (`ChatCompletionFunctionTool`)."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionReference(Request):
    """The name of a function."""

    name: FunctionName


class NamedToolChoice(Request):
    """The choice of one tool (`ChatCompletionNamedToolChoice`)."""

    type: Literal["function"]
    function: FunctionReference


class CalledFunction(Request):
    """The name of a called function, and its arguments as JSON (`Function`)."""

    name: ShortText
    arguments: Text


class ToolCall(Request):
    """A call in an assistant's message (`ChatCompletionMessageToolCallParam`)."""

    id: ShortText | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Annotated[int, Field(ge=0)] | None = Field(None, description="Changes nothing.")
