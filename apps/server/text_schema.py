"""Bodies of `/v1/completions` and `/v1/responses` (OpenAI's names of the types in parentheses)."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from .form_schema import JsonObjectFormat, NamedSchema, PlainFormat
from .schema import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    FormFields,
    SamplingFields,
    StreamOptions,
    ThinkingTokens,
    Tokens,
)
from .schema_base import Request, ShortText, Text

MAX_PROMPTS = 16

TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class CompletionRequest(SamplingFields, FormFields):
    """The body of `POST /v1/completions` (`CreateCompletionRequest`)."""

    model: ShortText
    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, fail_fast=True)]
        | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
    )
    max_tokens: Tokens | None = Field(None, description="Default: 16.")
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = 1
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None


class InputText(Request):
    """A text in a message (`ResponseInputText`, or `ResponseOutputText` of an answer that is sent back)."""

    type: Literal["input_text", "output_text"]
    text: Text


class InputImage(Request):
    """An image in a message (`ResponseInputImage`)."""

    type: Literal["input_image"]
    image_url: Annotated[str, Field(min_length=1, description="A data: URL with an image in base64.")]
    detail: Literal["auto", "low", "high"] | None = Field(None, description="Changes nothing.")


InputPart = Annotated[InputText | InputImage, Field(discriminator="type")]


class InputMessage(Request):
    """A message (`EasyInputMessage`, or `ResponseOutputMessage` of an answer that is sent back)."""

    type: Literal["message"] | None = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Text | Annotated[list[InputPart], Field(min_length=1, max_length=64, fail_fast=True)]


class InputReasoning(Request):
    """A thought that is sent back (`ResponseReasoningItem`): left out, as chat templates do."""

    type: Literal["reasoning"]
    id: ShortText | None = None
    summary: list[dict[str, Any]] | None = None
    content: list[dict[str, Any]] | None = None
    encrypted_content: Text | None = None
    status: ShortText | None = None


def _kind_of_item(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return "reasoning" if kind == "reasoning" else "message"


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")] | Annotated[InputReasoning, Tag("reasoning")],
    Discriminator(_kind_of_item),
]


class FlatSchema(NamedSchema):
    """The format of JSON that is valid against a schema (`ResponseFormatTextJSONSchemaConfig`)."""

    type: Literal["json_schema"]


class TextOptions(Request):
    """The form of the answer (`ResponseTextConfig`)."""

    format: Annotated[PlainFormat | JsonObjectFormat | FlatSchema, Field(discriminator="type")] | None = None


class ResponsesRequest(SamplingFields):
    """The body of `POST /v1/responses` (`CreateResponse`). Nothing is stored."""

    model: ShortText
    input: Text | Annotated[list[InputItem], Field(min_length=1, max_length=256, fail_fast=True)]
    instructions: Text | None = None
    max_output_tokens: Tokens | None = None
    max_thinking_tokens: ThinkingTokens | None = None
    text: TextOptions | None = None
    stream: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
