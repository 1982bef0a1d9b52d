"""`/v1/images/generations`."""

import base64
import io
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import torch
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image

from ...blocks.chat.image_io import write_png
from ...blocks.engine.request import Request as GenerationRequest
from ...blocks.engine.request import SampledToken
from ...blocks.errors import PromptError
from ...janus import image_generation
from ...janus.image_generation import ImageGenerationOptions, image_seeds
from . import schema as schema
from .chat import dump, value
from .errors import ApiError, json_only
from .registry import Fleet, Served
from .sse import EventStream, Mailbox, check_reason, event, while_connected

_DEFAULT_QUALITY = 90


class Painting:
    """One HTTP request in progress: its generation requests and what they tell."""

    def __init__(self, served: Served, asked: schema.ImageRequest) -> None:
        assert served.painter is not None
        self.served, self.asked, self.pipe = served, asked, served.painter
        self.created = int(time.time())
        self.mailbox = Mailbox()
        self.pictures = asked.n or 1
        scale = self.pipe.guidance_scale if asked.guidance_scale is None else asked.guidance_scale
        self.options = ImageGenerationOptions(
            scale,
            value(asked, "temperature"),
            value(asked, "top_k"),
            value(asked, "top_p"),
            asked.negative_prompt,
        )
        self.seeds = image_seeds(
            secrets.randbelow(2**32) if asked.seed is None else asked.seed, 1, self.pictures
        )
        self.format: Any = value(asked, "output_format")
        self.requests: list[GenerationRequest] = []
        self.prompt_tokens = 0

    async def start(self, fleet: Fleet) -> None:
        """Reserve rows, prepare the prompt, queue the requests."""
        scheduler, rows = self.served.scheduler, self.pictures * (2 if self.options.guided else 1)
        self.served.check_rows(rows)
        scheduler.reserve(rows)
        try:
            prompts = await fleet.run(self._prompts)
            self.requests = [self._request(index, prompts) for index in range(self.pictures)]
            scheduler.submit(self.requests)
        except BaseException:
            scheduler.release(rows)
            raise

    @torch.no_grad()
    def _prompts(self) -> list[torch.Tensor]:
        """Embeddings of the prompt, and with guidance of what it is guided away from."""
        processor, negative = self.pipe.processor, self.options.negative_prompt
        cond, uncond = processor.generation_ids(self.asked.prompt, negative)
        self.prompt_tokens = len(cond)
        try:
            self.served.scheduler.check(max(len(cond), len(uncond)), self.total)
        except PromptError as error:
            raise ApiError(400, str(error), code="context_length_exceeded", param="prompt") from error
        rows = [cond, uncond] if self.options.guided else [cond]
        return [self.pipe.model.embed_text(ids.to(self.pipe.device)) for ids in rows]

    @property
    def total(self) -> int:
        """Tokens of a picture."""
        return self.pipe.model.config.num_codes

    def _request(self, index: int, prompts: list[torch.Tensor]) -> GenerationRequest:
        assert self.served.image is not None
        codes: list[int] = []
        partials = (self.asked.partial_images or 0) if self.asked.stream else 0
        # Evenly over the painting: after 1/(k+1), 2/(k+1) ... of it.
        told = {self.total * (k + 1) // (partials + 1): k for k in range(partials)}

        def on_token(choice: SampledToken) -> None:
            codes.append(choice.token)
            if len(codes) in told:
                self.mailbox.put((index, list(codes), None))

        def on_end(reason: str) -> None:
            self.mailbox.put((index, codes, reason))

        return GenerationRequest(
            self.served.image,
            prompts,
            self.options.sampling,
            self.seeds[index],
            self.total,
            on_token,
            on_end,
            guidance_scale=self.options.guidance_scale,
        )

    def cancel(self) -> None:
        for request in self.requests:
            request.cancel()

    @property
    def usage(self) -> schema.ImageUsage:
        written = self.total * self.pictures
        return schema.ImageUsage(
            input_tokens=self.prompt_tokens,
            output_tokens=written,
            total_tokens=self.prompt_tokens + written,
            input_tokens_details={"text_tokens": self.prompt_tokens, "image_tokens": 0},
        )

    def encode(self, codes: list[int], seed: int) -> str:
        """Codes, all or the first ones, as a picture file in base64."""
        filled, width = list(codes), self.pipe.model.config.grid[1]
        while len(filled) < self.total:  # what is not painted yet repeats the last row that is
            filled.append(filled[-width] if len(filled) >= width else filled[-1])
        picture = image_generation.decode_images(self.pipe.model, torch.tensor([filled]))[0]
        settings = {"prompt": self.asked.prompt, "seed": seed, "model": self.served.name}
        for name in ("guidance_scale", "temperature", "top_k", "top_p", "negative_prompt"):
            settings[name] = getattr(self.options, name)
        settings["software"] = "Bifrons"
        picture.info.update({name: str(item) for name, item in settings.items() if item is not None})
        return base64.b64encode(self._file(picture)).decode()

    def _file(self, picture: Image.Image) -> bytes:
        stream = io.BytesIO()
        if self.format == "png":
            write_png(picture, stream)
        else:
            quality = self.asked.output_compression
            quality = _DEFAULT_QUALITY if quality is None else quality
            picture.save(stream, format=self.format.upper(), quality=quality)
        return stream.getvalue()

    async def whole(self, fleet: Fleet) -> schema.ImageReply:
        found: dict[int, list[int]] = {}
        try:
            await self.start(fleet)
            while len(found) < self.pictures:
                index, codes, reason = await self.mailbox.get()
                check_reason(reason)
                found[index] = codes
        finally:
            self.cancel()
        data = []
        for index, seed in enumerate(self.seeds):
            file = await fleet.run(self.encode, found[index], seed)
            data.append(schema.Painted(b64_json=file, seed=seed))
        return schema.ImageReply(
            created=self.created,
            data=data,
            output_format=self.format,
            size=self.served.image_size or "",
            usage=self.usage,
        )

    async def events(self, fleet: Fleet) -> AsyncIterator[bytes]:
        number = 0
        while True:
            _, codes, reason = await self.mailbox.get()
            if reason is not None:
                check_reason(reason)
            file = await fleet.run(self.encode, codes, self.seeds[0])
            last = reason is not None
            told = schema.ImageEvent(
                type="image_generation.completed" if last else "image_generation.partial_image",
                b64_json=file,
                created_at=self.created,
                output_format=self.format,
                size=self.served.image_size or "",
                partial_image_index=None if last else number,
                seed=self.seeds[0] if last else None,
                usage=self.usage if last else None,
            )
            yield event(told.model_dump(mode="json", exclude_none=True), told.type)
            if last:
                return
            number += 1


def check_together(asked: schema.ImageRequest, served: Served) -> None:
    """Fields that contradict each other, or the model."""
    if asked.size not in (None, "auto", served.image_size):
        raise ApiError(
            400,
            f"size is {asked.size!r}; {served.name} paints {served.image_size} only (or 'auto')",
            code="invalid_value",
            param="size",
        )
    if asked.partial_images and not asked.stream:
        raise ApiError(
            400, "partial_images works with stream: true", code="invalid_value", param="partial_images"
        )
    if asked.stream and (asked.n or 1) > 1:
        raise ApiError(
            400, "a stream carries one picture; n must be 1 with it", code="invalid_value", param="n"
        )
    if asked.output_compression is not None and value(asked, "output_format") == "png":
        raise ApiError(
            400,
            "output_compression works with output_format jpeg or webp",
            code="invalid_value",
            param="output_compression",
        )


def router(fleet: Fleet) -> APIRouter:
    routes = APIRouter(dependencies=[Depends(json_only)])
    answers: dict[int | str, dict[str, Any]] = {
        200: {"model": schema.ImageReply, "content": schema.event_stream(schema.ImageEvent)}
    }

    @routes.post("/v1/images/generations", responses=answers, response_model=None)
    async def images_generations(asked: schema.ImageRequest, request: Request) -> Response:
        """Pictures of a sentence, in base64; each tells the seed that paints it again."""
        served = fleet.painting(asked.model)
        check_together(asked, served)
        painting_request = Painting(served, asked)
        if not asked.stream:
            return JSONResponse(dump(await while_connected(request, painting_request.whole(fleet))))
        await while_connected(request, painting_request.start(fleet))
        return EventStream(painting_request.events(fleet), painting_request.requests)

    return routes
