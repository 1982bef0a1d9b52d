"""Bodies of responses and of streamed events. OpenAI's names of the types stand in parentheses."""

from typing import Any, Literal

from fastapi import Response
from pydantic import BaseModel


class TopLogprob(BaseModel):
    """A token and its log-probability (`TopLogprob`)."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A generated token with its top alternatives (`ChatCompletionTokenLogprob`)."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """Log-probabilities of a choice (`ChoiceLogprobs`)."""

    content: list[TokenLogprob]
    refusal: None = None


Finish = Literal["stop", "length", "tool_calls"]


class Usage(BaseModel):
    """Token counts of a chat completion (`CompletionUsage`)."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CalledFunction(BaseModel):
    """The name of a called function, and its arguments as JSON (`Function`)."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call of a tool (`ChatCompletionMessageFunctionToolCall`)."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AnswerMessage(BaseModel):
    """The generated message of a choice (`ChatCompletionMessage`); one with calls has no content. A model's
    thought is its `reasoning_content`, as with DeepSeek's API."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | None = None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class Choice(BaseModel):
    """One choice of a chat completion (`Choice`)."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None = None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    """The response to a chat request that is not streamed (`ChatCompletion`)."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class FunctionDelta(BaseModel):
    """What an event adds to a called function (`ChoiceDeltaToolCallFunction`)."""

    name: str | None = None
    arguments: str


class ToolCallDelta(BaseModel):
    """What an event adds to a call; the first one has its id (`ChoiceDeltaToolCall`)."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(BaseModel):
    """What an event adds to the message of a choice (`ChoiceDelta`)."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(BaseModel):
    """One choice of a streamed event (`chat_completion_chunk.Choice`)."""

    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: Finish | None = None


class ChatChunk(BaseModel):
    """One event of a streamed chat completion; `data: [DONE]` ends the stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a completion's tokens (`Logprobs` of `CompletionChoice`)."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text of a completion, or what an event adds to it (`CompletionChoice`)."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None = None


class Completion(BaseModel):
    """The response to a completion request, or an event of a streamed one (`Completion`)."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ImageUsage(BaseModel):
    """Token counts of an image request (`ImagesResponse.usage`)."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: dict[str, int]


class Painted(BaseModel):
    """One generated image in base64 or by URL (`Image`), with the seed that reproduces it."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class ImageReply(BaseModel):
    """The response to an image request that is not streamed (`ImagesResponse`)."""

    created: int
    background: Literal["opaque"] = "opaque"
    data: list[Painted]
    output_format: Literal["png", "jpeg", "webp"]
    size: str
    usage: ImageUsage


class ImageEvent(BaseModel):
    """An event of a streamed image: a partial image, or at last the completed one with its usage and seed."""

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
    """A model (`Model`), with its abilities and a note; vLLM calls the context `max_model_len`, and the model
    to which an adapter belongs `parent`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["bifrons"] = "bifrons"
    paints: bool
    image_size: str | None
    context: int
    max_model_len: int
    note: str | None
    parent: str | None = None


class ModelList(BaseModel):
    """The response of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """The response of `GET /health`, `/readyz` and `/livez`; not part of OpenAI's interface.

    `failed` names the models whose engine has failed, if there are any; only a restart of the server helps.
    `starting` says that no replica runs yet, or none runs any more.
    """

    status: Literal["ok", "starting", "stopping", "failed"]
    models: list[str]
    failed: list[str] | None = None


def event_stream(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a stream whose events are `model`s, as JSON in `data`."""
    fields = {"event": {"type": "string"}, "data": {"type": "string", "description": model.__doc__ or ""}}
    return {"text/event-stream": {"schema": {"type": "object", "properties": fields, "required": ["data"]}}}


def json_response(model: BaseModel) -> Response:
    """The response with this object as its body."""
    return Response(model.model_dump_json(), media_type="application/json")


def to_json(model: BaseModel) -> dict[str, Any]:
    """The object as a dictionary of JSON types."""
    return model.model_dump(mode="json")
