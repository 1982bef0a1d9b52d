"""`/v1/images/generations`."""

import asyncio
import base64
import io
import secrets
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Depends, Request, Response
from PIL import Image

from ...blocks.device import upload
from ...blocks.errors import PromptError
from ...blocks.image_io import write_png
from ...blocks.sampling.request import Request as GenerationRequest
from ...blocks.sampling.request import SampledToken
from ...janus import image_generation
from ...janus.image_generation import ImageGenerationOptions, image_seeds
from . import responses, schema
from .bodies import body_schema, json_body
from .errors import ApiError, invalid_value
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
        self, registry: ModelRegistry, served: ServedModel, body: schema.ImageRequest, client: object
    ) -> None:
        assert served.image_pipe is not None
        assert served.image_decoder is not None
        self.registry, self.served, self.body, self.pipe = registry, served, body, served.image_pipe
        self.decoder = served.image_decoder
        self.client, self.created = client, int(time.time())
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
        try:
            self.served.scheduler.check(max(len(cond), len(uncond)), self.num_codes)
        except PromptError as error:
            raise ApiError(400, str(error), code="context_length_exceeded", param="prompt") from error
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

    def encode(self, codes: list[int], seed: int) -> str:
        """An image file in base64 from all codes of an image or from the first ones."""
        filled, width = list(codes), self.pipe.model.config.grid[1]
        while len(filled) < self.num_codes:  # missing rows repeat the last one
            filled.append(filled[-width] if len(filled) >= width else filled[-1])
        image = self.decoder.decode(filled)
        model, name = self.pipe.model, self.served.name
        image.info.update(image_generation.image_info(model, name, self.body.prompt, seed, self.options))
        return base64.b64encode(self._image_bytes(image)).decode()

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
        files = await asyncio.gather(*tasks)
        images = [
            responses.Painted(b64_json=file, seed=seed) for file, seed in zip(files, self.seeds, strict=True)
        ]
        return responses.ImageReply(
            created=self.created,
            data=images,
            output_format=self.format,
            size=self.served.image_size or "",
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
                b64_json=file,
                created_at=self.created,
                output_format=self.format,
                size=self.served.image_size or "",
                partial_image_index=None if last else partial_index,
                seed=self.seeds[0] if last else None,
                usage=self.usage if last else None,
            )
            yield event(image_event.model_dump(mode="json", exclude_none=True), image_event.type)
            partial_index += 1


def check_fields(body: schema.ImageRequest, served: ServedModel) -> None:
    """Raise an `ApiError` for fields that contradict each other or the model."""
    if body.size not in (None, "auto", served.image_size):
        message = f"size is {body.size!r}; {served.name} paints {served.image_size} only (or 'auto')"
        raise invalid_value(message, "size")
    if body.partial_images and not body.stream:
        raise invalid_value("partial_images requires stream: true", "partial_images")
    if body.stream and (body.n or 1) > 1:
        raise invalid_value("a stream carries one picture; n must be 1 with it", "n")
    if body.output_compression is not None and field_or_default(body, "output_format") == "png":
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
        generation = ImageGeneration(registry, served, body, client_of(request.scope))
        return await respond(request, generation, stream=bool(body.stream))

    return routes
