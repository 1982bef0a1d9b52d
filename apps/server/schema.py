"""Bodies of requests: the part of OpenAI's API that these models support.

OpenAI's names of the types stand in parentheses. What else clients send is dropped where `neutral_fields`
says that it changes nothing, and refused by name otherwise, so that nothing is silently ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from ...blocks.chat.text_generation import MAX_SEED, TextGenerationOptions
from ...janus.image_generation import ImageGenerationOptions
from .form_schema import (
    MAX_TOOLS,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedToolChoice,
    PlainFormat,
    StructuredOutputs,
    Tool,
    ToolCall,
)
from .schema_base import Request, ShortText, Text

MAX_CHOICES = 8
MAX_IMAGES = 10  # as in OpenAI's API
MAX_TOP_LOGPROBS = 20  # as in OpenAI's API
MAX_PROMPT = 32_000  # as in OpenAI's API

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenText = Annotated[str, Field(pattern=r"^[0-9]{1,7}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
TopP = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
StopList = Annotated[list[Stop], Field(max_length=4, fail_fast=True)]


class TextPart(Request):
    """A text part of a message (`ChatCompletionContentPartText`)."""

    type: Literal["text"]
    text: Text


class ImageAddress(Request):
    """The image of an image part, as a data: URL."""

    url: Annotated[str, Field(min_length=1, description="A data: URL with an image in base64.")]
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="Changes nothing: a picture is always read at the model's full resolution."
    )


class ImagePart(Request):
    """An image part of a message (`ChatCompletionContentPartImage`)."""

    type: Literal["image_url"]
    image_url: ImageAddress


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
TextParts = Annotated[list[TextPart], Field(min_length=1, max_length=64, fail_fast=True)]


class SystemMessage(Request):
    """A system or developer message (`ChatCompletionSystemMessageParam`)."""

    role: Literal["system", "developer"]
    content: Text | TextParts


class UserMessage(Request):
    """A user message with text and images (`ChatCompletionUserMessageParam`)."""

    role: Literal["user"]
    content: Text | Annotated[list[Part], Field(min_length=1, max_length=64, fail_fast=True)]


class AssistantMessage(Request):
    """An assistant message (`ChatCompletionAssistantMessageParam`)."""

    role: Literal["assistant"]
    content: Text | TextParts | None = None
    reasoning_content: Text | None = Field(
        None, description="A thought, as answers have it; not read: models see earlier answers alone."
    )
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None


class ToolMessage(Request):
    """What a tool returned (`ChatCompletionToolMessageParam`)."""

    role: Literal["tool"]
    content: Text | TextParts
    tool_call_id: ShortText | None = None
    name: ShortText | None = Field(None, description="The tool's name, if no call has the id.")


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class StreamOptions(Request):
    """Options of a streamed chat completion (`ChatCompletionStreamOptions`)."""

    include_usage: bool | None = False


ThinkingTokens = Annotated[
    int,
    Field(
        ge=0, le=1_000_000, description="Tokens after which a thought is ended, of models that think first."
    ),
]


class SamplingFields(Request):
    """How the tokens of a text are chosen, in every request for texts."""

    temperature: Temperature | None = Field(
        TextGenerationOptions.temperature,
        description="0 is greedy. Default of text models: what their folder recommends, as of top_p.",
    )
    top_p: TopP | None = TextGenerationOptions.top_p
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = Field(0, description="0 and -1 mean all.")
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = Field(
        TextGenerationOptions.repetition_penalty, description="1 changes nothing; the prompt counts."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = 0.0
    frequency_penalty: Penalty | None = 0.0
    presence_penalty: Penalty | None = 0.0
    logit_bias: dict[TokenText, Bias] | None = Field(None, description="Biases by token id.")
    seed: Seed | None = Field(None, description="Choice j is sampled with seed + j.")
    stop: Annotated[str, Field(max_length=256)] | StopList | None = None
    skip_special_tokens: bool | None = Field(
        None, description="Default: true for Janus; false for DeepSeek-VL2, whose boxes are such tokens."
    )


class FormFields(Request):
    """What a text must match."""

    response_format: (
        Annotated[PlainFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None
    ) = None
    guided_json: dict[str, Any] | Text | None = None
    guided_regex: Text | None = None
    guided_choice: list[Text] | None = None
    guided_grammar: Text | None = Field(None, description="Lark, or GBNF (with ::=).")
    structured_outputs: StructuredOutputs | None = None


class ChatRequest(SamplingFields, FormFields):
    """The body of `POST /v1/chat/completions` (`CreateChatCompletionRequest`)."""

    model: Annotated[str, Field(max_length=256)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=256, fail_fast=True)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    max_thinking_tokens: ThinkingTokens | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = Field(
        None, description="Default: auto with tools, else none."
    )
    parallel_tool_calls: bool | None = Field(True, description="Whether an answer may hold several calls.")


class ImageRequest(Request):
    """The body of `POST /v1/images/generations` (`CreateImageRequest`), with sampling options."""

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
    model: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="Default: the first model that generates images."
    )
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = 1
    size: Annotated[str, Field(max_length=32)] | None = Field(
        "auto", description="The model's own size, or auto; with resize any other."
    )
    resize: bool | None = Field(False, description="Whether finished pictures are scaled to the size.")
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="Quality of jpeg and webp; not accepted for png, which is lossless."
    )
    stream: bool | None = False
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = 0
    seed: Seed | None = Field(None, description="Image j is generated with seed + j.")
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="Default: the model's own; 1 means no guidance."
    )
    temperature: Temperature | None = ImageGenerationOptions.temperature
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = ImageGenerationOptions.top_k
    top_p: TopP | None = ImageGenerationOptions.top_p
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT)] | None = None


def field_or_default(body: BaseModel, name: str) -> Any:
    """The value of a field; null stands for the default, as in OpenAI's API."""
    value = getattr(body, name)
    return type(body).model_fields[name].default if value is None else value
