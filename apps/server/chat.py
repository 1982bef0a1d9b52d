"""`/v1/chat/completions`."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.types import Scope

from ...blocks.chat.text_generation import resolve_seed
from ...blocks.errors import OptionError
from ...blocks.logit_bias import check_logit_bias
from ...blocks.sampling.request import Request as GenerationRequest
from ...blocks.sampling.request import SamplingParams
from ...blocks.token_masks import OutputMatcher
from ...blocks.vocabulary import last_question
from ..pipelines import in_thought
from . import responses, schema
from .bodies import body_schema, json_body
from .chat_events import ChatEvents
from .errors import invalid_value
from .middleware import client_of, release_body
from .registry import SHORT_TEXT, ModelRegistry, ServedModel
from .schema import field_or_default
from .sse import check_finish_reason, event, respond
from .stream_text import ChoiceOutput, TextChunk
from .structured import asks_for_form, check_form, make_matchers
from .supervision import contained
from .tool_calls import CallParser
from .tools import ToolUse, plain_messages


class ChatGeneration:
    """A chat completion in progress: one generation request per choice, and their outputs."""

    prompt_field = "messages"
    """The field that errors about the prompt name."""
    strips = True
    """Whether white space around answers is dropped."""
    splits_thoughts = True
    """Whether a thought before an answer is given apart from it."""

    def __init__(
        self, registry: ModelRegistry, served: ServedModel, body: schema.ChatRequest, scope: Scope
    ) -> None:
        self.registry, self.served, self.body, self.scope = registry, served, body, scope
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.signal = registry.new_signal()
        self.tools = ToolUse.of(body)
        self.num_choices = body.n or 1
        self.requests: list[GenerationRequest] = []
        self.outputs: list[ChoiceOutput] = []
        self.prompt_tokens = 0

    @property
    def warning(self) -> str | None:
        """A line about words of the last message that the model doesn't know; before it is started."""
        return self.served.pipe.unknown_words([last_question(self.body.messages)], "reading")

    @property
    def sampling(self) -> SamplingParams:
        """How the tokens of answers are chosen. Raises an `ApiError`."""
        pipe = self.served.pipe
        return sampling_params(self.body, pipe.model.decoder.config.vocab_size, pipe.temperature, pipe.top_p)

    async def start(self) -> None:
        """Prepare the prompt and queue the generation requests."""
        client = client_of(self.scope)
        self.requests = await self.served.submit(self.num_choices, self._make_requests, client)
        self.body.messages.clear()  # with the pictures in base64
        release_body(self.scope)

    async def _make_requests(self) -> list[GenerationRequest]:
        pictures = self.registry.pictures
        messages = plain_messages(self.body.messages, self.tools)
        messages = await pictures.load_messages(messages, self.served, self.num_choices)
        if _is_short_text(messages):
            inputs = contained(self._inputs, messages)
        else:
            inputs = await self.registry.run_in_thread(self._inputs, messages)
        return await self._requests_for(inputs, self.num_choices)

    async def _requests_for(self, inputs: Any, choices: int) -> list[GenerationRequest]:
        """The requests of some choices for one prompt."""
        prompt_tokens = len(inputs.ids)
        asked = self.body.max_completion_tokens or self.body.max_tokens
        max_new_tokens = self.served.limits.new_tokens(prompt_tokens, asked, self.prompt_field)
        seed = resolve_seed(self.body.seed)
        thinks = self.splits_thoughts and in_thought(self.served.pipe, inputs.ids.tolist())
        matchers = await self._make_matchers(choices, max_new_tokens, thinks)
        outputs = [self._output(inputs.continues, thinks) for _ in matchers]
        self.outputs += outputs
        self.prompt_tokens += prompt_tokens
        return [
            GenerationRequest(
                self.served.text_head,
                (),
                self.sampling,
                seed + index,
                max_new_tokens,
                output.on_token,
                output.on_end,
                eos_id=self.served.pipe.tokenizer.eos_id,
                logprobs=(self.body.top_logprobs or 0) if self.body.logprobs else None,
                embed=self.served.pipe.model.embed_prompts,
                inputs=inputs,
                prompt_tokens=prompt_tokens,
                matcher=matcher,
            )
            for index, (output, matcher) in enumerate(zip(outputs, matchers, strict=True))
        ]

    async def _make_matchers(
        self, choices: int, max_new_tokens: int, thinks: bool
    ) -> Sequence[OutputMatcher | None]:
        """What holds each choice to the form that the request asks for; None for a free one."""
        if not asks_for_form(self.body) and self.body.max_thinking_tokens is None:
            return [None] * choices
        arguments = (self.body, self.served.pipe.tokenizer, thinks, choices, max_new_tokens)
        run = self.registry.run_in_thread
        return await run(make_matchers, *arguments, threads=self.registry.compilers)

    def _inputs(self, messages: list[dict[str, Any]]) -> Any:
        """Token ids and pixels; the scheduler's thread embeds those of all waiting requests together."""
        return self.served.pipe.processor.chat_inputs(messages, local_files=False)

    def _output(self, continues: bool, thinks: bool) -> ChoiceOutput:
        stop, skip, pipe = self.body.stop, self.body.skip_special_tokens, self.served.pipe
        return ChoiceOutput(
            pipe.tokenizer,
            [stop] if isinstance(stop, str) and stop else list(stop or ()),
            self.signal,
            skip_special_tokens=not pipe.keeps_special_tokens if skip is None else skip,
            stream=bool(self.body.stream),
            strip=self.strips and (self.tools is not None or not asks_for_form(self.body)),
            parser=None if self.tools is None else CallParser(self.tools),
            continues=continues,
            in_thought=thinks,
        )

    def cancel(self) -> None:
        """Cancel the generation requests that have not ended."""
        for request in self.requests:
            request.cancel()

    @property
    def usage(self) -> responses.Usage:
        """Token counts so far."""
        generated = sum(output.num_tokens for output in self.outputs)
        return responses.Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=generated,
            total_tokens=self.prompt_tokens + generated,
        )

    async def chunks(self) -> AsyncIterator[list[tuple[int, TextChunk]]]:
        """What has arrived for the choices, by index, until each has ended; an `ApiError` if one failed."""
        unfinished = list(range(self.num_choices))
        while unfinished:
            await self.signal.wait()
            chunks = [(index, contained(self.outputs[index].read)) for index in unfinished]
            for index, chunk in chunks:
                if chunk.finish_reason is not None:
                    self.requests[index].cancel()  # it still runs if a stop string has ended the choice
                    check_finish_reason(chunk.finish_reason, self.requests[index])
                    unfinished.remove(index)
            yield chunks

    async def texts(self) -> tuple[list[str], list[list[responses.TokenLogprob]]]:
        """Start, and wait for the whole text of each choice, and the log-probabilities of its tokens."""
        texts = [""] * self.num_choices
        self.thoughts = [""] * self.num_choices
        logprobs: list[list[responses.TokenLogprob]] = [[] for _ in texts]
        try:
            await self.start()
            async for chunks in self.chunks():
                for index, chunk in chunks:
                    texts[index] += chunk.text
                    self.thoughts[index] += chunk.thought
                    logprobs[index] += chunk.logprobs
        finally:
            self.cancel()
        return texts, logprobs

    async def complete(self) -> Any:
        """Start, and wait for the whole completion."""
        texts, logprobs = await self.texts()
        choices = [
            responses.Choice(
                index=index,
                message=responses.AnswerMessage(
                    content=None if output.calls else texts[index],
                    reasoning_content=self.thoughts[index] or None,
                    tool_calls=output.calls or None,
                ),
                logprobs=responses.Logprobs(content=logprobs[index]) if self.body.logprobs else None,
                finish_reason=finish_reason(output),
            )
            for index, output in enumerate(self.outputs)
        ]
        return responses.ChatCompletion(
            id=self.id, created=self.created, model=self.served.name, choices=choices, usage=self.usage
        )

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events of a completion that has been started; those that are due together in one."""
        make, with_logprobs = ChatEvents(self.id, self.created, self.served.name), bool(self.body.logprobs)
        yield b"".join(make.role(index) for index in range(self.num_choices))
        async for chunks in self.chunks():
            due = []
            for index, chunk in chunks:
                if chunk.thought:
                    due.append(make.thought(index, chunk))
                if chunk.text or chunk.logprobs:
                    due.append(make.text(index, chunk, with_logprobs))
                if chunk.calls:
                    due.append(make.calls(index, chunk.calls))
                if chunk.finish_reason is not None:
                    due.append(make.finish(index, finish_reason(self.outputs[index])))
            if due:
                yield b"".join(due)
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield make.usage(self.usage)
        yield event("[DONE]")


def sampling_params(
    body: schema.ChatRequest, vocabulary: int, temperature: float = 0.0, top_p: float = 1.0
) -> SamplingParams:
    """How the tokens of an answer are chosen; the model's `temperature` and `top_p` where the request has
    none. Raises an `ApiError`."""
    names = ("temperature", "top_p", "repetition_penalty", "min_p", "presence_penalty", "frequency_penalty")
    values = {name: field_or_default(body, name) for name in names}
    own = {"temperature": temperature, "top_p": top_p}
    values |= {n: own[n] for n in own if n not in body.model_fields_set or getattr(body, n) is None}
    biases = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
    try:
        checked = check_logit_bias(biases, vocabulary)
    except OptionError as error:
        raise invalid_value(str(error), "logit_bias") from error
    return SamplingParams(**values, top_k=max(0, body.top_k or 0), logit_bias=checked)


def finish_reason(output: ChoiceOutput) -> responses.Finish:
    """Why a choice ended, in the words of OpenAI's API."""
    if output.finish_reason == "length":
        return "length"
    return "tool_calls" if output.calls else "stop"


def _is_short_text(messages: list[dict[str, Any]]) -> bool:
    """Whether a conversation is prepared faster than it is handed to another thread and back."""
    contents = [message["content"] for message in messages]
    return all(isinstance(text, str) for text in contents) and sum(map(len, contents)) <= SHORT_TEXT


def check_fields(body: schema.ChatRequest) -> None:
    """Raise an `ApiError` for fields that contradict each other."""
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise invalid_value("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
    if body.top_logprobs and not body.logprobs:
        raise invalid_value("top_logprobs requires logprobs: true", "top_logprobs")
    if body.stream_options is not None and body.stream_options.include_usage and not body.stream:
        raise invalid_value("stream_options requires stream: true", "stream_options")
    check_form(body)


def router(registry: ModelRegistry) -> APIRouter:
    """The route of chat completions."""
    routes, read_body = APIRouter(), json_body(schema.ChatRequest)
    documented: dict[int | str, dict[str, Any]] = {
        200: {"model": responses.ChatCompletion, "content": responses.event_stream(responses.ChatChunk)}
    }

    @routes.post(
        "/v1/chat/completions",
        responses=documented,
        response_model=None,
        openapi_extra=body_schema(schema.ChatRequest),
    )
    async def chat_completions(
        request: Request, body: Annotated[schema.ChatRequest, Depends(read_body)]
    ) -> Response:
        """The assistant's next message. Images are `image_url` parts with data: URLs."""
        check_fields(body)
        generation = ChatGeneration(registry, registry.get(body.model), body, request.scope)
        return await respond(request, generation, stream=bool(body.stream))

    return routes
