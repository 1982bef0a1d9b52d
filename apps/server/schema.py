"""What the server accepts and answers: the part of OpenAI's interface that these models can honour.

A field of OpenAI's that they can't honour is accepted only with the value that changes nothing; all else is
refused by name, so that no wish is ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...blocks.chat.text_generation import MAX_SEED, TextGenerationOptions
from ...janus.image_generation import ImageGenerationOptions

MAX_CHOICES = 8
MAX_IMAGES = 10  # as in OpenAI's
MAX_TOP_LOGPROBS = 20  # as in OpenAI's
MAX_TEXT = 200_000
MAX_PROMPT = 32_000  # as in OpenAI's

Seed = Annotated[int, Field(ge=0, le=MAX_SEED - MAX_IMAGES)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Zero = Annotated[float, Field(ge=0, le=0)]
TopP = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class Request(BaseModel):
    """Strict: no text for a number, no unknown field, no infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Request):
    type: Literal["text"]
    text: Text


class ImageAddress(Request):
    url: Annotated[str, Field(min_length=1, description="A data: URL with a picture in base64.")]
    detail: Literal["auto", "high"] | None = None


class ImagePart(Request):
    type: Literal["image_url"]
    image_url: ImageAddress


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
TextParts = Annotated[list[TextPart], Field(min_length=1, max_length=64)]


class SystemMessage(Request):
    role: Literal["system", "developer"]
    content: Text | TextParts


class UserMessage(Request):
    role: Literal["user"]
    content: Text | Annotated[list[Part], Field(min_length=1, max_length=64)]


class AssistantMessage(Request):
    """The fields after `content` are those of this server's own answers, to be sent back as they came."""

    role: Literal["assistant"]
    content: Text | TextParts | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(Request):
    include_usage: bool = False


class PlainFormat(Request):
    type: Literal["text"]


class ChatRequest(Request):
    model: Annotated[str, Field(max_length=256)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Temperature | None = Field(TextGenerationOptions.temperature, description="0 is greedy.")
    top_p: TopP | None = TextGenerationOptions.top_p
    seed: Seed | None = Field(None, description="Choice j is drawn with seed + j.")
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = 1
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    frequency_penalty: Zero | None = 0.0
    presence_penalty: Zero | None = 0.0
    response_format: PlainFormat | None = None
    user: Annotated[str, Field(max_length=256)] | None = None


class ImageRequest(Request):
    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
    model: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="The first model that paints, if none is named."
    )
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = 1
    size: Annotated[str, Field(max_length=32)] | None = Field("auto", description="The model's own, or auto.")
    response_format: Literal["b64_json"] | None = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="Quality of jpeg and webp; not for png, which loses nothing."
    )
    quality: Literal["auto"] | None = "auto"
    background: Literal["auto", "opaque"] | None = "auto"
    stream: bool | None = False
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = 0
    user: Annotated[str, Field(max_length=256)] | None = None
    seed: Seed | None = Field(None, description="Picture j is painted with seed + j.")
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="The model's own, if none is given; 1 is without guidance."
    )
    temperature: Temperature | None = ImageGenerationOptions.temperature
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = ImageGenerationOptions.top_k
    top_p: TopP | None = ImageGenerationOptions.top_p
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT)] | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


Finish = Literal["stop", "length"]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: Logprobs | None = None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: Finish | None = None


class ChatChunk(BaseModel):
    """One event of a streamed answer; `data: [DONE]` ends the stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ImageUsage(BaseModel):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: dict[str, int]


class Painted(BaseModel):
    b64_json: str
    seed: int


class ImageReply(BaseModel):
    created: int
    background: Literal["opaque"] = "opaque"
    data: list[Painted]
    output_format: Literal["png", "jpeg", "webp"]
    size: str
    usage: ImageUsage


class ImageEvent(BaseModel):
    """An event of a streamed picture: some partial ones, then the completed one with its usage and seed."""

    type: Literal["image_generation.partial_image", "image_generation.completed"]
    b64_json: str
    background: Literal["opaque"] = "opaque"
    created_at: int
    output_format: Literal["png", "jpeg", "webp"]
    quality: Literal["auto"] = "auto"
    size: str
    partial_image_index: int | None = None
    seed: int | None = None
    usage: ImageUsage | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["bifrons"] = "bifrons"
    paints: bool
    image_size: str | None
    context: int
    note: str | None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok", "stopping"]
    models: list[str]


def event_stream(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's entry for a stream of such events."""
    return {"text/event-stream": {"schema": {"type": "string", "description": model.__doc__ or ""}}}
