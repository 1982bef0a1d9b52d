"""Bodies of requests: the part of OpenAI's API that these models support.

OpenAI's names of the types stand in parentheses. What else clients send is dropped where `neutral_fields`
says that it changes nothing, and refused by name otherwise, so that nothing is silently ignored.
"""

from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from ...blocks.chat.text_generation import MAX_SEED, TextGenerationOptions
from ...janus.image_generation import ImageGenerationOptions
from .neutral_fields import is_neutral, refusal

UNSUPPORTED = "unsupported_value"
"""Type and code of the error for a value of a neutral field that would change something."""
MAX_CHOICES = 8
MAX_IMAGES = 10  # as in OpenAI's API
MAX_TOP_LOGPROBS = 20  # as in OpenAI's API
MAX_TEXT = 200_000
MAX_PROMPT = 32_000  # as in OpenAI's API

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Zero = Annotated[float, Field(ge=0, le=0)]
TopP = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
StopList = Annotated[list[Stop], Field(max_length=4, fail_fast=True)]


class Request(BaseModel):
    """Base of request bodies. It is strict: no strings for numbers, no unknown fields, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _drop_neutral_fields(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Drop unknown fields that change nothing; if all others are right, refuse the first that does."""
        if not isinstance(data, dict):
            return handler(data)
        checked = handler({name: data[name] for name in data if name in cls.model_fields})
        for name in data:
            if name not in cls.model_fields and not is_neutral(cls.__name__, name, data[name]):
                text = cast(Any, refusal(cls.__name__, name))
                kind = "extra_forbidden" if text is None else PydanticCustomError(UNSUPPORTED, text)
                problem = InitErrorDetails(type=kind, loc=(name,), input=None)
                raise ValidationError.from_exception_data(cls.__name__, [problem])
        return checked


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


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(Request):
    """Options of a streamed chat completion (`ChatCompletionStreamOptions`)."""

    include_usage: bool | None = False


class PlainFormat(Request):
    """The response format of plain text (`ResponseFormatText`)."""

    type: Literal["text"]


class ChatRequest(Request):
    """The body of `POST /v1/chat/completions` (`CreateChatCompletionRequest`)."""

    model: Annotated[str, Field(max_length=256)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=256, fail_fast=True)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Temperature | None = Field(TextGenerationOptions.temperature, description="0 is greedy.")
    top_p: TopP | None = TextGenerationOptions.top_p
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = Field(0, description="0 and -1 mean all.")
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = Field(
        TextGenerationOptions.repetition_penalty, description="1 changes nothing; the prompt counts."
    )
    seed: Seed | None = Field(None, description="Choice j is sampled with seed + j.")
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = 1
    stop: Annotated[str, Field(max_length=256)] | StopList | None = None
    skip_special_tokens: bool | None = Field(
        None, description="Default: true for Janus; false for DeepSeek-VL2, whose boxes are such tokens."
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    frequency_penalty: Zero | None = 0.0
    presence_penalty: Zero | None = 0.0
    response_format: PlainFormat | None = None


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
