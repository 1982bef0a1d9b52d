"""`/v1/images/generations`."""

import asyncio
import base64
import io
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Depends, Request, Response
from PIL import Image
from starlette.datastructures import URL
from starlette.types import Scope

from ...blocks.device import upload
from ...blocks.errors import OptionError
from ...blocks.generated_image import GeneratedImage
from ...blocks.generation_step import fill_up
from ...blocks.image_io import write_png
from ...blocks.image_prompts import image_seeds
from ...blocks.sampling.request import Request as GenerationRequest
from ...blocks.sampling.request import SampledToken
from ...janus import image_generation
from ...janus.image_generation import ImageGenerationOptions
from ..resize import MAX_SIDE, MIN_SIDE, parse_size, resize
from . import responses, schema
from .bodies import body_schema, json_body
from .errors import invalid_value
from .middleware import client_of
from .notifier import OutputQueue
from .registry import SHORT_TEXT, ModelRegistry, ServedModel
from .schema import field_or_default
from .sse import check_finish_reason, event, respond
from .supervision import contained

_DEFAULT_QUALITY = 90
_PRIORITY = 1  # chats start first


class ImageGeneration:
    """An image request in progress: one generation request per image, and their outputs.

    An output is an image's index, its codes (all or the first ones), and the finish reason or None.
    """

    def __init__(
        self, registry: ModelRegistry, served: ServedModel, body: schema.ImageRequest, scope: Scope
    ) -> None:
        assert served.image_pipe is not None
        assert served.image_decoder is not None
        self.registry, self.served, self.body, self.pipe = registry, served, body, served.image_pipe
        self.decoder = served.image_decoder
        self.client, self.created = client_of(scope), int(time.time())
        self.url = str(URL(scope=scope).replace(path="", query=""))
        self.size = image_size(body, served)
        self.outputs = OutputQueue(registry.new_signal())
        self.num_images = body.n or 1
        self.num_codes = self.pipe.model.config.num_codes
        self.options = ImageGenerationOptions(
            self.pipe.guidance_scale if body.guidance_scale is None else body.guidance_scale,
            field_or_default(body, "temperature"),
            field_or_default(body, "top_k"),
            field_or_default(body, "top_p"),
            body.negative_prompt,
        )
        seed = secrets.randbelow(2**32) if body.seed is None else body.seed
        self.seeds = image_seeds(seed, 1, self.num_images)
        self.format: Any = field_or_default(body, "output_format")
        self.requests: list[GenerationRequest] = []
        self.prompt_tokens = 0

    @property
    def warning(self) -> str | None:
        """A line about words of the prompts that the model doesn't know."""
        texts = [self.body.prompt, self.options.negative_prompt or ""]
        return self.pipe.unknown_words(texts, "painting")

    async def start(self) -> None:
        """Prepare the prompt and queue the generation requests."""
        rows = self.num_images * (2 if self.options.guided else 1)
        self.requests = await self.served.submit(rows, self._make_requests, self.client, _PRIORITY)

    async def _make_requests(self) -> list[GenerationRequest]:
        if len(self.body.prompt) + len(self.options.negative_prompt or "") <= SHORT_TEXT:
            prompts = contained(self._embed_prompts)
        else:
            prompts = await self.registry.run_in_thread(self._embed_prompts)
        return [self._make_request(index, prompts) for index in range(self.num_images)]

    @torch.no_grad()
    def _embed_prompts(self) -> list[torch.Tensor]:
        """Embeddings of the prompt and, with guidance, of the unconditional or negative prompt."""
        processor, negative = self.pipe.processor, self.options.negative_prompt
        cond, uncond = processor.generation_ids(self.body.prompt, negative)
        self.prompt_tokens = len(cond)
        self.served.limits.check(max(len(cond), len(uncond)), self.num_codes, "prompt")
        rows = [cond, uncond] if self.options.guided else [cond]
        return [self.pipe.model.embed_text(upload(ids, self.pipe.device)) for ids in rows]

    def _make_request(self, index: int, prompts: list[torch.Tensor]) -> GenerationRequest:
        assert self.served.image_head is not None
        codes: list[int] = []
        partials = (self.body.partial_images or 0) if self.body.stream else 0
        # Partial images are sent at equal intervals: after 1/(k+1), 2/(k+1), ... of the codes.
        sent_at = {self.num_codes * (k + 1) // (partials + 1) for k in range(partials)}

        def on_token(sampled: SampledToken) -> None:
            codes.append(sampled.token)
            if sent_at and len(codes) in sent_at:
                self.outputs.put((index, list(codes), None))

        def on_end(reason: str) -> None:
            self.outputs.put((index, codes, reason))

        return GenerationRequest(
            self.served.image_head,
            prompts,
            self.options.sampling,
            self.seeds[index],
            self.num_codes,
            on_token,
            on_end,
        )

    def cancel(self) -> None:
        """Cancel the generation requests that have not ended."""
        for request in self.requests:
            request.cancel()

    @property
    def usage(self) -> responses.ImageUsage:
        """Token counts of all images."""
        generated = self.num_codes * self.num_images
        return responses.ImageUsage(
            input_tokens=self.prompt_tokens,
            output_tokens=generated,
            total_tokens=self.prompt_tokens + generated,
            input_tokens_details={"text_tokens": self.prompt_tokens, "image_tokens": 0},
        )

    def encode(self, codes: list[int], seed: int) -> bytes:
        """An image file from all codes of an image or from the first ones."""
        filled = fill_up(torch.tensor([codes]), self.num_codes)[0].tolist()
        info = image_generation.image_info(self.pipe, self.body.prompt, seed, self.options)
        image = GeneratedImage.of(self.decoder.decode(filled), {**info, "model": self.served.name})
        return self._image_bytes(resize(image, self.size))

    def _image_bytes(self, image: Image.Image) -> bytes:
        stream = io.BytesIO()
        if self.format == "png":
            write_png(image, stream)
        else:
            quality = self.body.output_compression
            quality = _DEFAULT_QUALITY if quality is None else quality
            image.save(stream, format=self.format.upper(), quality=quality)
        return stream.getvalue()

    async def complete(self) -> responses.ImageReply:
        """Start, and wait for all images."""
        if self.body.response_format != "url":
            return self._reply([base64.b64encode(file).decode() for file in await self._files()])
        files = self.registry.image_files
        with files.room(self.num_images, self.size):
            paths = [files.add(file, f"image/{self.format}") for file in await self._files()]
        return self._reply([self.url + path for path in paths])

    async def _files(self) -> list[bytes]:
        codes_by_index: dict[int, list[int]] = {}
        try:
            await self.start()
            while len(codes_by_index) < self.num_images:
                index, codes, reason = await self.outputs.get()
                check_finish_reason(reason, self.requests[index])
                codes_by_index[index] = codes
        finally:
            self.cancel()
        encode, run = self.encode, partial(self.registry.run_in_thread, threads=self.registry.encoders)
        tasks = [run(encode, codes_by_index[index], seed) for index, seed in enumerate(self.seeds)]
        return await asyncio.gather(*tasks)

    def _reply(self, images: list[str]) -> responses.ImageReply:
        name = field_or_default(self.body, "response_format")
        data = [
            responses.Painted(**{name: image}, seed=seed)
            for image, seed in zip(images, self.seeds, strict=True)
        ]
        return responses.ImageReply(
            created=self.created,
            data=data,
            output_format=self.format,
            size=size_text(self.size),
            usage=self.usage,
        )

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events of an image that has been started: partial images, then the completed one."""
        partial_index, last = 0, False
        while not last:
            _, codes, reason = await self.outputs.get()
            last = reason is not None
            if last:
                check_finish_reason(reason, self.requests[0])
            file = await self.registry.run_in_thread(
                self.encode, codes, self.seeds[0], threads=self.registry.encoders
            )
            image_event = responses.ImageEvent(
                type="image_generation.completed" if last else "image_generation.partial_image",
                b64_json=base64.b64encode(file).decode(),
                created_at=self.created,
                output_format=self.format,
                size=size_text(self.size),
                partial_image_index=None if last else partial_index,
                seed=self.seeds[0] if last else None,
                usage=self.usage if last else None,
            )
            yield event(image_event.model_dump(mode="json", exclude_none=True), image_event.type)
            partial_index += 1


def size_text(size: tuple[int, int]) -> str:
    """`WIDTHxHEIGHT`."""
    return "{}x{}".format(*size)


def image_size(body: schema.ImageRequest, served: ServedModel) -> tuple[int, int]:
    """Width and height that the request asks for; an `ApiError` if it gets no such picture."""
    own = served.image_size
    assert own is not None
    if body.size in (None, "auto", size_text(own)):
        return own
    if body.resize:
        with suppress(OptionError):
            return parse_size(body.size or "", "size")
    message = (
        f"size is {body.size!r}; {served.name} paints {own[0]} x {own[1]} only; accepted: {size_text(own)}, "
        f"auto, or with resize: true any size from {MIN_SIDE}x{MIN_SIDE} to {MAX_SIDE}x{MAX_SIDE}, to which "
        "the finished picture is scaled"
    )
    raise invalid_value(message, "size")


def check_fields(body: schema.ImageRequest, served: ServedModel) -> None:
    """Raise an `ApiError` for fields that contradict each other or the model."""
    image_size(body, served)
    if body.response_format == "url" and body.stream:
        raise invalid_value("a stream carries its picture; response_format must be b64_json", "stream")
    if body.partial_images and not body.stream:
        raise invalid_value("partial_images requires stream: true", "partial_images")
    if body.stream and (body.n or 1) > 1:
        raise invalid_value("a stream carries one picture; n must be 1 with it", "n")
    if body.output_compression not in (None, 100) and field_or_default(body, "output_format") == "png":
        raise invalid_value("output_compression requires output_format jpeg or webp", "output_compression")


def router(registry: ModelRegistry) -> APIRouter:
    """The route of image generations."""
    routes, read_body = APIRouter(), json_body(schema.ImageRequest)
    documented: dict[int | str, dict[str, Any]] = {
        200: {"model": responses.ImageReply, "content": responses.event_stream(responses.ImageEvent)}
    }

    @routes.post(
        "/v1/images/generations",
        responses=documented,
        response_model=None,
        openapi_extra=body_schema(schema.ImageRequest),
    )
    async def images_generations(
        request: Request, body: Annotated[schema.ImageRequest, Depends(read_body)]
    ) -> Response:
        """Images of a prompt, in base64, each with the seed that reproduces it."""
        served = registry.get_image_model(body.model)
        check_fields(body, served)
        generation = ImageGeneration(registry, served, body, request.scope)
        return await respond(request, generation, stream=bool(body.stream))

    return routes
