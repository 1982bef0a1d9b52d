"""`/v1/chat/completions`."""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import BaseModel

from ...blocks.chat.image_io import open_image
from ...blocks.chat.text_generation import Prompt, resolve_seed
from ...blocks.engine.request import Request as GenerationRequest
from ...blocks.engine.sampling_params import Sampling
from ...blocks.errors import PictureError, PromptError
from . import schema as schema
from .errors import ApiError, json_only
from .registry import Fleet, Served, ServerOptions
from .sse import EventStream, Mailbox, check_reason, event, while_connected
from .stream_text import AnswerWriter, Piece
from .url_fetch import fetch


class Answering:
    """One HTTP request in progress: its generation requests, their writers and what they tell."""

    def __init__(self, served: Served, asked: schema.ChatRequest) -> None:
        self.served, self.asked = served, asked
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.mailbox = Mailbox()
        self.choices = asked.n or 1
        self.requests: list[GenerationRequest] = []
        self.writers: list[AnswerWriter] = []
        self.prompt_tokens = 0

    async def start(self, fleet: Fleet) -> None:
        """Reserve rows, prepare the prompt, queue the requests."""
        scheduler = self.served.scheduler
        self.served.check_rows(self.choices)
        scheduler.reserve(self.choices)
        try:
            messages = await collect(self.asked.messages, fleet)
            prompt = await fleet.run(self._prompt, messages)
            self.requests = self._make_requests(prompt, fleet.options)
            scheduler.submit(self.requests)
        except BaseException:
            scheduler.release(self.choices)
            raise

    def _prompt(self, messages: list[dict[str, Any]]) -> Prompt:
        return self.served.pipe.prompts([messages], 0, local_files=False)[0]

    def _make_requests(self, prompt: Prompt, options: ServerOptions) -> list[GenerationRequest]:
        asked, served, pipe = self.asked, self.served, self.served.pipe
        self.prompt_tokens = len(prompt)
        new = asked.max_completion_tokens or asked.max_tokens
        if new is None:
            new = max(1, min(options.max_new_tokens, served.scheduler.context - len(prompt)))
        try:
            served.scheduler.check(len(prompt), new)
        except PromptError as error:
            raise ApiError(400, str(error), code="context_length_exceeded", param="messages") from error
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        sampling = Sampling(value(asked, "temperature"), 0, value(asked, "top_p"))
        seed = resolve_seed(asked.seed)
        for index in range(self.choices):
            writer = AnswerWriter(
                index,
                pipe.tokenizer,
                stops,
                self.mailbox.put,
                skip_special_tokens=not pipe.keeps_special_tokens,
                stream=bool(asked.stream),
            )
            self.writers.append(writer)
        return [
            GenerationRequest(
                served.text,
                [prompt.embeddings_TD],
                sampling,
                seed + index,
                new,
                writer.on_token,
                writer.on_end,
                eos_id=pipe.tokenizer.eos_id,
                logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
            )
            for index, writer in enumerate(self.writers)
        ]

    def cancel(self) -> None:
        for request in self.requests:
            request.cancel()

    @property
    def usage(self) -> schema.Usage:
        written = sum(writer.count for writer in self.writers)
        return schema.Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=written,
            total_tokens=self.prompt_tokens + written,
        )

    def logprobs(self, piece: Piece) -> schema.Logprobs | None:
        return schema.Logprobs(content=piece.logprobs) if self.asked.logprobs else None

    async def pieces(self) -> AsyncIterator[Piece]:
        """Pieces of all choices until each has ended."""
        going = self.choices
        while going:
            piece: Piece = await self.mailbox.get()
            if piece.reason is not None:
                check_reason(piece.reason)
                going -= 1
            yield piece

    async def whole(self, fleet: Fleet) -> schema.ChatCompletion:
        try:
            await self.start(fleet)
            ended = sorted([piece async for piece in self.pieces()], key=lambda piece: piece.index)
        finally:
            self.cancel()
        choices = [
            schema.Choice(
                index=piece.index,
                message=schema.AnswerMessage(content=piece.text),
                logprobs=self.logprobs(piece),
                finish_reason="length" if piece.reason == "length" else "stop",
            )
            for piece in ended
        ]
        return schema.ChatCompletion(
            id=self.id, created=self.created, model=self.served.name, choices=choices, usage=self.usage
        )

    async def events(self) -> AsyncIterator[bytes]:
        for index in range(self.choices):
            yield self._chunk(index, schema.Delta(role="assistant", content=""))
        async for piece in self.pieces():
            if piece.text or piece.logprobs:
                yield self._chunk(piece.index, schema.Delta(content=piece.text), self.logprobs(piece))
            if piece.reason is not None:
                yield self._chunk(piece.index, schema.Delta(), reason=piece.reason)
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            yield self._event([], self.usage)
        yield event("[DONE]")

    def _chunk(
        self,
        index: int,
        delta: schema.Delta,
        logprobs: schema.Logprobs | None = None,
        reason: str | None = None,
    ) -> bytes:
        finish = None if reason is None else "length" if reason == "length" else "stop"
        choice = schema.ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish)
        return self._event([choice], None)

    def _event(self, choices: list[schema.ChunkChoice], usage: schema.Usage | None) -> bytes:
        chunk = schema.ChatChunk(
            id=self.id, created=self.created, model=self.served.name, choices=choices, usage=usage
        )
        content = dump(chunk)
        for choice in content["choices"]:
            choice["delta"] = {key: item for key, item in choice["delta"].items() if item is not None}
        return event(content)


def value(asked: BaseModel, name: str) -> Any:
    """A field, where null means the default, as OpenAI has it."""
    given = getattr(asked, name)
    return type(asked).model_fields[name].default if given is None else given


def dump(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


async def collect(messages: list[Any], fleet: Fleet) -> list[dict[str, Any]]:
    """The messages as the pipelines take them, pictures decoded: no address or path is left in them."""
    parts = [part for message in messages if isinstance(message.content, list) for part in message.content]
    total = sum(part.type == "image_url" for part in parts)
    if total > fleet.options.max_pictures:
        raise ApiError(
            400,
            f"the request has {total} pictures; at most {fleet.options.max_pictures} are accepted",
            code="too_many_images",
            param="messages",
        )
    collected = []
    for message in messages:
        content = message.content
        if isinstance(content, list):
            content = [await _part(part, fleet) for part in content]
        role = "system" if message.role == "developer" else message.role
        collected.append({"role": role, "content": content})
    return collected


async def _part(part: Any, fleet: Fleet) -> dict[str, Any]:
    if part.type == "text":
        return {"type": "text", "text": part.text}
    source, options = part.image_url.url, fleet.options
    if source[:6].lower() in ("http:/", "https:"):
        if not options.allow_url_fetch:
            raise ApiError(
                400,
                "this server fetches no pictures; send the picture itself as a data: URL in base64",
                code="invalid_image_url",
                param="messages",
            )
        source = await fetch(source, options.max_body)
    return {"type": "image", "image": await fleet.run(_open, source, options)}


def _open(source: str | bytes, options: ServerOptions) -> Image.Image:
    opened = open_image(source, max_pixels=options.max_pixels, local_files=False)
    if max(opened.size) > options.max_side:
        width, height = opened.size
        raise PictureError(
            f"the picture is {width:,} x {height:,} pixels; at most {options.max_side:,} a side are accepted"
        )
    return opened


def check_together(asked: schema.ChatRequest) -> None:
    """Fields that contradict each other."""
    if asked.max_tokens is not None and asked.max_completion_tokens not in (None, asked.max_tokens):
        raise ApiError(
            400,
            "max_tokens and max_completion_tokens differ; give one of them",
            code="invalid_value",
            param="max_tokens",
        )
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ApiError(
            400, "top_logprobs works with logprobs: true", code="invalid_value", param="top_logprobs"
        )
    if asked.stream_options is not None and not asked.stream:
        raise ApiError(
            400, "stream_options works with stream: true", code="invalid_value", param="stream_options"
        )


def router(fleet: Fleet) -> APIRouter:
    routes = APIRouter(dependencies=[Depends(json_only)])
    answers: dict[int | str, dict[str, Any]] = {
        200: {"model": schema.ChatCompletion, "content": schema.event_stream(schema.ChatChunk)}
    }

    @routes.post("/v1/chat/completions", responses=answers, response_model=None)
    async def chat_completions(asked: schema.ChatRequest, request: Request) -> Response:
        """The assistant's next message. Pictures are `image_url` parts with data: URLs."""
        check_together(asked)
        served = fleet.get(asked.model)
        answering = Answering(served, asked)
        if not asked.stream:
            return JSONResponse(dump(await while_connected(request, answering.whole(fleet))))
        await while_connected(request, answering.start(fleet))
        return EventStream(answering.events(), answering.requests)

    return routes
