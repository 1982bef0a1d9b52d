"""`/v1/completions`: texts that go on from a prompt, without a chat template."""

import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.types import Scope

from ...blocks.errors import PromptError
from ...blocks.sampling.request import Request as GenerationRequest
from . import responses, schema
from .bodies import body_schema, json_body
from .chat import ChatGeneration, check_fields, finish_reason
from .errors import invalid_value
from .registry import SHORT_TEXT, ModelRegistry, ServedModel
from .sse import event, respond
from .stream_text import TextChunk
from .supervision import contained
from .text_schema import MAX_PROMPTS, CompletionRequest

DEFAULT_TOKENS = 16  # as in OpenAI's API


class CompletionGeneration(ChatGeneration):
    """A completion in progress. Choice `j` of prompt `i` has the index `i * n + j`."""

    prompt_field, strips, splits_thoughts = "prompt", False, False

    def __init__(
        self, registry: ModelRegistry, served: ServedModel, body: CompletionRequest, scope: Scope
    ) -> None:
        super().__init__(registry, served, _as_chat(body), scope)
        self.id = f"cmpl-{secrets.token_hex(12)}"
        self.prompts = _prompts(body.prompt)
        self.with_logprobs = body.logprobs is not None
        self.per_prompt = self.num_choices
        self.num_choices *= len(self.prompts)
        self.offsets = [0] * self.num_choices

    @property
    def warning(self) -> str | None:
        """A line about words of the prompts that the model doesn't know; token ids are not looked at."""
        texts = [one for one in self.prompts if isinstance(one, str)]
        return self.served.pipe.unknown_words(texts, "reading")

    async def _make_requests(self) -> list[GenerationRequest]:
        if sum(len(prompt) for prompt in self.prompts) <= SHORT_TEXT:
            inputs = contained(self._prompt_inputs)
        else:
            inputs = await self.registry.run_in_thread(self._prompt_inputs)
        made = [await self._requests_for(one, self.per_prompt) for one in inputs]
        return [request for requests in made for request in requests]

    def _prompt_inputs(self) -> list[Any]:
        """The model's inputs of each prompt."""
        pipe = self.served.pipe
        ids = [pipe.tokenizer.encode(one) if isinstance(one, str) else one for one in self.prompts]
        try:
            return [pipe.plain_inputs(one) for one in ids]
        except PromptError as error:
            raise invalid_value(str(error), "prompt") from error

    async def complete(self) -> responses.Completion:
        """Start, and wait for all texts."""
        texts, logprobs = await self.texts()
        choices = [
            self._choice(index, TextChunk(texts[index], logprobs[index]), finish_reason(output))
            for index, output in enumerate(self.outputs)
        ]
        return self._completion(choices, self.usage)

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events of completions that have been started; those that are due together in one."""
        async for chunks in self.chunks():
            due = [
                self._choice(
                    index, chunk, finish_reason(self.outputs[index]) if chunk.finish_reason else None
                )
                for index, chunk in chunks
                if chunk.text or chunk.logprobs or chunk.finish_reason
            ]
            if due:
                yield b"".join(event(self._completion([choice]).model_dump(mode="json")) for choice in due)
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield event(self._completion([], self.usage).model_dump(mode="json"))
        yield event("[DONE]")

    def _choice(
        self, index: int, chunk: TextChunk, finish: responses.Finish | None
    ) -> responses.CompletionChoice:
        logprobs = None
        if self.with_logprobs:
            logprobs = _logprobs(chunk.logprobs, self.offsets[index])
            self.offsets[index] += sum(len(token.token) for token in chunk.logprobs)
        return responses.CompletionChoice(
            index=index, text=chunk.text, logprobs=logprobs, finish_reason=finish
        )

    def _completion(
        self, choices: list[responses.CompletionChoice], usage: responses.Usage | None = None
    ) -> responses.Completion:
        return responses.Completion(
            id=self.id, created=self.created, model=self.served.name, choices=choices, usage=usage
        )


def _prompts(prompt: Any) -> Sequence[str | list[int]]:
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    if len(prompt) > MAX_PROMPTS:
        raise invalid_value(f"it has {len(prompt):,} texts; accepted: up to {MAX_PROMPTS}", "prompt")
    return prompt


def _as_chat(body: CompletionRequest) -> schema.ChatRequest:
    """The fields of a completion that chats have too."""
    names = schema.ChatRequest.model_fields.keys() & body.model_fields_set
    fields = {name: getattr(body, name) for name in names}
    fields |= {"max_tokens": body.max_tokens or DEFAULT_TOKENS, "messages": []}
    fields |= {"logprobs": body.logprobs is not None, "top_logprobs": body.logprobs}
    return schema.ChatRequest.model_construct(**fields)


def _logprobs(tokens: Sequence[responses.TokenLogprob], offset: int) -> responses.CompletionLogprobs:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return responses.CompletionLogprobs(
        tokens=[token.token for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[{top.token: top.logprob for top in token.top_logprobs} for token in tokens],
        text_offset=offsets,
    )


def router(registry: ModelRegistry) -> APIRouter:
    """The route of completions."""
    routes, read_body = APIRouter(), json_body(CompletionRequest)
    documented: dict[int | str, dict[str, Any]] = {
        200: {"model": responses.Completion, "content": responses.event_stream(responses.Completion)}
    }

    @routes.post(
        "/v1/completions",
        responses=documented,
        response_model=None,
        openapi_extra=body_schema(CompletionRequest),
    )
    async def completions(
        request: Request, body: Annotated[CompletionRequest, Depends(read_body)]
    ) -> Response:
        """Texts that go on from prompts, given as texts or as token ids; special tokens count in them."""
        generation = CompletionGeneration(registry, registry.get(body.model), body, request.scope)
        check_fields(generation.body)
        return await respond(request, generation, stream=bool(body.stream))

    return routes
