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
from .response_events import OutputItems, ResponseEvents
from .response_objects import OutputText, ReasoningText, ResponseEvent, ResponseObject, ResponseUsage
from .responses import TokenLogprob, event_stream
from .sse import respond
from .text_schema import FlatSchema, InputImage, InputMessage, InputReasoning, ResponsesRequest

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
        self.id, self.items = f"resp_{secrets.token_hex(12)}", OutputItems()
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
        return self._response(self.chat.thoughts[0], texts[0], self._of_answer(logprobs[0]))

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events of a response that has been started."""
        make, output = ResponseEvents(self.items), self.chat.outputs[0]
        yield make.begin(self._response())
        waiting: list[TokenLogprob] = []  # until it is known which are the thought's
        thinking = True
        async for chunks in self.chat.chunks():
            for _, chunk in chunks:
                waiting += chunk.logprobs
                if chunk.thought:
                    yield make.think(chunk.thought)
                if output.is_thinking:
                    continue
                of_answer, waiting = self._of_answer(waiting) if thinking else waiting, []
                thinking = False
                if chunk.text or of_answer:
                    yield make.answer(chunk.text, of_answer)
        yield make.end(self._response(make.thought, make.text, make.logprobs))

    def _of_answer(self, logprobs: list[TokenLogprob]) -> list[TokenLogprob]:
        """Those of the tokens after the thought."""
        return logprobs[self.chat.outputs[0].thought_tokens :]

    def _response(
        self, thought: str = "", text: str | None = None, logprobs: list[TokenLogprob] | None = None
    ) -> ResponseObject:
        """The response with this text; with None, as it is at the beginning."""
        status, usage, output = "in_progress", None, []
        if text is not None:
            choice = self.chat.outputs[0]
            status = "incomplete" if finish_reason(choice) == "length" else "completed"
            if thought:
                done = "incomplete" if choice.is_thinking else "completed"
                output.append(self.items.thought(done, ReasoningText(text=thought)))
            if not (thought and choice.is_thinking):
                output.append(self.items.answer(status, OutputText(text=text, logprobs=logprobs or [])))
            counts = self.chat.usage
            usage = ResponseUsage(
                input_tokens=counts.prompt_tokens,
                output_tokens=counts.completion_tokens,
                output_tokens_details={"reasoning_tokens": choice.thought_tokens},
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
    messages = [_as_message(item) for item in items if not isinstance(item, InputReasoning)]
    if not messages:
        raise ApiError(400, "it has no message; accepted: at least one", code="invalid_value", param="input")
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
        max_thinking_tokens=body.max_thinking_tokens,
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
