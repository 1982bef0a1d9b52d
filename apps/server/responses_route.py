"""`/v1/responses`: chats in the form of OpenAI's newer API. Nothing is stored."""

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.types import Scope

from ...blocks.sampling.request import Request as GenerationRequest
from . import schema
from .bodies import body_schema, json_body
from .chat import ChatGeneration, check_fields, finish_reason
from .errors import ApiError
from .registry import ModelRegistry, ServedModel
from .response_objects import OutputMessage, OutputText, ResponseEvent, ResponseObject, ResponseUsage, Status
from .responses import TokenLogprob, event_stream
from .sse import event, respond
from .text_schema import FlatSchema, InputImage, InputMessage, ResponsesRequest

_PARAMS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema.schema": "text.format.schema",
    "response_format.schema": "text.format.schema",
}
"""Fields of chats, and what they are called here."""


class ResponseGeneration:
    """A response in progress: a chat completion with one choice."""

    def __init__(
        self, registry: ModelRegistry, served: ServedModel, body: ResponsesRequest, scope: Scope
    ) -> None:
        self.body = body
        self.chat = ChatGeneration(registry, served, _as_chat(body), scope)
        self.id, self.item_id = f"resp_{secrets.token_hex(12)}", f"msg_{secrets.token_hex(12)}"
        body.input = ""  # with the pictures in base64

    @property
    def requests(self) -> list[GenerationRequest]:
        """The generation request."""
        return self.chat.requests

    @property
    def warning(self) -> str | None:
        """That of the chat completion."""
        return self.chat.warning

    async def start(self) -> None:
        """Prepare the prompt and queue the generation request."""
        with _own_names():
            await self.chat.start()

    async def complete(self) -> ResponseObject:
        """Start, and wait for the whole response."""
        with _own_names():
            texts, logprobs = await self.chat.texts()
        return self._response(texts[0], logprobs[0])

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events of a response that has been started."""
        make = _Events()
        part: dict[str, Any] = {"output_index": 0, "content_index": 0, "item_id": self.item_id}
        begun, item = self._response(None), self._item("in_progress")
        yield make("response.created", response=begun) + make("response.in_progress", response=begun)
        yield make("response.output_item.added", output_index=0, item=item)
        yield make("response.content_part.added", **part, part=OutputText())
        text, logprobs = "", []
        async for chunks in self.chat.chunks():
            for _, chunk in chunks:
                text, logprobs = text + chunk.text, logprobs + chunk.logprobs
                if chunk.text or chunk.logprobs:
                    delta = {"delta": chunk.text, "logprobs": chunk.logprobs}
                    yield make("response.output_text.delta", **part, **delta)
        whole = self._response(text, logprobs)
        item = whole.output[0]
        yield make("response.output_text.done", **part, text=text, logprobs=logprobs)
        yield make("response.content_part.done", **part, part=item.content[0])
        yield make("response.output_item.done", output_index=0, item=item)
        yield make(f"response.{whole.status}", response=whole)

    def _item(self, status: Status, *content: OutputText) -> OutputMessage:
        return OutputMessage(id=self.item_id, status=status, content=list(content))

    def _response(self, text: str | None, logprobs: list[TokenLogprob] | None = None) -> ResponseObject:
        """The response with this text; with None, as it is at the beginning."""
        status, usage, output = "in_progress", None, []
        if text is not None:
            cut = finish_reason(self.chat.outputs[0]) == "length"
            status = "incomplete" if cut else "completed"
            output = [self._item(status, OutputText(text=text, logprobs=logprobs or []))]
            counts = self.chat.usage
            usage = ResponseUsage(
                input_tokens=counts.prompt_tokens,
                output_tokens=counts.completion_tokens,
                total_tokens=counts.total_tokens,
            )
        return ResponseObject(
            id=self.id,
            created_at=self.chat.created,
            status=status,
            model=self.chat.served.name,
            output=output,
            usage=usage,
            incomplete_details={"reason": "max_output_tokens"} if status == "incomplete" else None,
            instructions=self.body.instructions,
            max_output_tokens=self.body.max_output_tokens,
            temperature=self.chat.sampling.temperature,
            top_p=self.chat.sampling.top_p,
            top_logprobs=self.body.top_logprobs or 0,
            text={"format": _format(self.body) or {"type": "text"}},
        )


class _Events:
    """Makes numbered events."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, kind: str, **fields: Any) -> bytes:
        made = ResponseEvent(type=kind, sequence_number=self._count, **fields)
        self._count += 1
        content = made.model_dump(mode="json")
        return event({name: content[name] for name in ("type", "sequence_number", *fields)}, kind)


@contextmanager
def _own_names() -> Iterator[None]:
    """Let errors name the fields as they are called here."""
    try:
        yield
    except ApiError as error:
        error.param = _PARAMS.get(error.param or "", error.param)
        raise


def _format(body: ResponsesRequest) -> dict[str, Any] | None:
    given = None if body.text is None else body.text.format
    return None if given is None else given.model_dump(mode="json", by_alias=True, exclude_none=True)


def _as_chat(body: ResponsesRequest) -> schema.ChatRequest:
    """The chat that the request asks for."""
    items = [InputMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    messages = [_as_message(item) for item in items]
    if body.instructions:
        messages.insert(0, schema.SystemMessage(role="system", content=body.instructions))
    names = schema.SamplingFields.model_fields.keys() & body.model_fields_set
    given = None if body.text is None else body.text.format
    if isinstance(given, FlatSchema):
        fields = given.model_dump(by_alias=True, exclude={"type"})
        given = schema.JsonSchemaFormat.model_validate({"type": "json_schema", "json_schema": fields})
    return schema.ChatRequest.model_construct(
        **{name: getattr(body, name) for name in names},
        model=body.model,
        messages=messages,
        max_tokens=body.max_output_tokens,
        stream=body.stream,
        logprobs="message.output_text.logprobs" in (body.include or ()) or bool(body.top_logprobs),
        top_logprobs=body.top_logprobs,
        response_format=given,
    )


def _as_message(item: InputMessage) -> Any:
    kinds = {"user": schema.UserMessage, "assistant": schema.AssistantMessage}
    kind, content = kinds.get(item.role, schema.SystemMessage), item.content
    if isinstance(content, list):
        content = [_as_part(part, item.role) for part in content]
    return kind.model_construct(role=item.role, content=content)


def _as_part(part: Any, role: str) -> Any:
    if not isinstance(part, InputImage):
        return schema.TextPart.model_construct(type="text", text=part.text)
    if role != "user":
        text = f"a message of the {role} has an image; only the user's may"
        raise ApiError(400, text, code="invalid_value", param="input")
    address = schema.ImageAddress.model_construct(url=part.image_url)
    return schema.ImagePart.model_construct(type="image_url", image_url=address)


def router(registry: ModelRegistry) -> APIRouter:
    """The route of responses."""
    routes, read_body = APIRouter(), json_body(ResponsesRequest)
    documented: dict[int | str, dict[str, Any]] = {
        200: {"model": ResponseObject, "content": event_stream(ResponseEvent)}
    }

    @routes.post(
        "/v1/responses",
        responses=documented,
        response_model=None,
        openapi_extra=body_schema(ResponsesRequest),
    )
    async def create_response(
        request: Request, body: Annotated[ResponsesRequest, Depends(read_body)]
    ) -> Response:
        """The answer to a text or to messages, in the form of OpenAI's Responses API; nothing is stored."""
        generation = ResponseGeneration(registry, registry.get(body.model), body, request.scope)
        with _own_names():
            check_fields(generation.chat.body)
        return await respond(request, generation, stream=bool(body.stream))

    return routes
