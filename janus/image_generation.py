"""Image generation: from prompt ids to image tokens (codes) to images.

N images, L prompt tokens, T image tokens of an image, D decoder width, C codebook size, S image side.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from ..blocks.chat.text_generation import score_tokens
from ..blocks.device import check_finite, not_finite
from ..blocks.drafts import JacobiDrafts
from ..blocks.engine.generate import Sequences, scheduler_of
from ..blocks.errors import OptionError, as_python_numbers, check_number
from ..blocks.generation_step import Callback, GenerationStep
from ..blocks.graphs.cuda_graphs import is_row_invariant
from ..blocks.placement.loaded_pipeline import LoadedPipeline
from ..blocks.placement.memory_budget import batch_over_devices, batch_that_fits
from ..blocks.sampling.request import SamplingParams, TokenHead, check_context
from ..blocks.sampling.sampling import guide
from ..blocks.speculate import Speculate, check_speculate
from ..tokenizers.vq.model import to_uint8
from .model import JanusModel
from .variants import image_generation_workload

_PRIORITY = 1  # after chats


@dataclass(frozen=True)
class ImageGenerationOptions:
    """How an image is generated.

    `guidance_scale=1` is no guidance: unconditional rows are not computed. `temperature=0` is greedy;
    `top_k=0` and `top_p=1` keep the whole codebook. `negative_prompt` replaces the unconditional prompt.
    `speculate` is how many codes a step may check (blocks/drafts.py); it changes none. Raises `OptionError`.
    """

    guidance_scale: float = 5.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    negative_prompt: str | None = None
    speculate: Speculate = "auto"

    def __post_init__(self) -> None:
        as_python_numbers(self)
        check_number("guidance_scale", self.guidance_scale, low=0.0)
        _ = self.sampling
        check_speculate(self.speculate)
        if self.negative_prompt is not None and not isinstance(self.negative_prompt, str):
            raise OptionError(f"negative_prompt is {self.negative_prompt!r}; accepted: a text or None")
        if self.negative_prompt is not None and not self.guided:
            raise OptionError(
                "negative_prompt works through guidance; accepted with a guidance_scale other than 1"
            )

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0

    @property
    def sampling(self) -> SamplingParams:
        scale = self.guidance_scale if self.guided else None
        return SamplingParams(self.temperature, self.top_k, self.top_p, scale)


def _input_device(model: JanusModel) -> torch.device:
    """The device for ids, codes and pixels. Raises `OptionError` if the image parts were not loaded."""
    _ = model.gen_embed.weight
    return model.decoder.device


def image_head(model: JanusModel) -> TokenHead:
    """The token head of image codes."""
    return TokenHead(model.embed_codes, model.image_logits, JacobiDrafts(model.config.grid[1]))


def image_sequences(
    model: JanusModel,
    cond: Sequence[Tensor],
    uncond: Sequence[Tensor] | None,
    options: ImageGenerationOptions,
    seeds: Sequence[int],
) -> Sequences:
    """The sequences of N images.

    `cond` and `uncond` are the prompt ids `[L]` of each image; without guidance `uncond` is None.
    """
    device = _input_device(model)
    rows = zip(cond, strict=True) if uncond is None else zip(cond, uncond, strict=True)
    return Sequences(
        image_head(model),
        [[model.embed_text(ids.to(device)) for ids in row] for row in rows],
        options.sampling,
        seeds,
        model.config.num_codes,
        priority=_PRIORITY,
        speculate=options.speculate,
    )


@torch.no_grad()
def generate_codes(
    model: JanusModel,
    cond: Sequence[Tensor],
    uncond: Sequence[Tensor] | None,
    options: ImageGenerationOptions,
    seeds: Sequence[int],
    callback: Callback | None = None,
) -> tuple[Tensor, list[int]]:
    """Codes int64 `[N, T]` on the CPU, generated in batches that fit in memory, and each image's steps.

    The split into batches does not change an image. `callback` gets the codes of the current batch; an
    exception from it stops the generation.
    """
    total = model.config.num_codes
    longest = max(len(ids) for ids in [*cond, *(uncond or ())])
    check_context(longest, total, model.config.decoder.max_positions)
    size = image_batch_size(model, uncond is not None, longest)
    batches, steps = [], []
    for start in range(0, len(cond), size):
        part = slice(start, start + size)
        sequences = image_sequences(model, cond[part], uncond and uncond[part], options, seeds[part])
        for step, _ in enumerate(sequences.run(model.decoder), start=1):
            if callback is not None:
                so_far = torch.tensor([codes[:step] for codes in sequences.tokens])
                callback(GenerationStep.of(so_far, total, partial(decode_images, model)), total, so_far)
        batches.append(torch.tensor(sequences.tokens))
        steps += [request.passes for request in sequences.requests]
    return torch.cat(batches), steps


def image_batch_size(model: JanusModel, guided: bool, longest: int) -> int:
    """Number of images to generate at once, for prompts of up to `longest` tokens."""
    decoder = model.decoder
    work = image_generation_workload(model.config, guided, longest)
    if decoder.layout is not None:
        return batch_over_devices(work, decoder.layout, decoder.dtype)
    scheduler = scheduler_of(decoder)
    size = batch_that_fits(work, _input_device(model), decoder.dtype, scheduler.runner.cache_bytes)
    if scheduler.rows is None:
        return size
    return min(size, scheduler.row_limit(_PRIORITY) // (2 if guided else 1))


@torch.no_grad()
def decode_images(model: JanusModel, codes_NT: Tensor) -> list[Image.Image]:
    """Images of codes `[N, T]`, decoded one at a time: an image is the same in any batch, and activations,
    which are large, are those of one."""
    pixels = [model.decode_codes(codes) for codes in codes_NT.to(_input_device(model)).split(1)]
    check_finite(torch.stack([one.amax() + one.amin() for one in pixels]), "the image's pixels")
    images = [to_uint8(one) for one in pixels]
    return list(map(Image.fromarray, torch.cat(images).cpu().numpy()))


def image_info(
    pipe: LoadedPipeline, prompt: str, seed: int, options: ImageGenerationOptions
) -> dict[str, str]:
    """The texts in `info` of an image that the pipeline generates: what it is generated from, and by what.

    `deterministic` says whether these give the same bits in any batch or in the same batch only.
    """
    batch = "in any batch" if is_row_invariant(pipe.model.decoder) else "in the same batch"
    info = {"prompt": prompt, "seed": str(seed), **pipe.description, "deterministic": batch}
    settings = ((key, value) for key, value in asdict(options).items() if key != "speculate")
    return info | {key: str(value) for key, value in settings if value is not None}


@torch.no_grad()
def next_image_logits(
    model: JanusModel, cond: Tensor, uncond: Tensor | None, guidance_scale: float
) -> Tensor:
    """Guided logits of the first image token, float32 `[C]` on the CPU."""
    device = _input_device(model)
    rows = [cond] if uncond is None else [cond, uncond]
    hidden = [model.decoder(model.embed_text(ids.to(device))[None])[0, -1] for ids in rows]
    logits = model.image_logits(torch.stack(hidden)).float()
    guided = logits[0] if uncond is None else guide(logits[0], logits[1], guidance_scale)
    return check_finite(guided.cpu(), "the model's logits", model.decoder.dtype)


@torch.no_grad()
def score_image_codes(model: JanusModel, cond: Tensor, codes_T: Tensor) -> Tensor:
    """Log-probability of each image token after the prompt, without guidance, float32 `[T]` on the CPU."""
    prompt_LD = model.embed_text(cond.to(_input_device(model)))
    return score_tokens(model.decoder, image_head(model), prompt_LD, codes_T)


@torch.no_grad()
def encode_pixels(model: JanusModel, pixels_3SS: Tensor) -> Tensor:
    """Codes int64 `[T]` on the CPU, of pixels in -1..1."""
    pixels = pixels_3SS[None].to(_input_device(model), model.decoder.dtype)
    codes = model.gen_vision_model.encode(pixels)[0].cpu()
    if (codes < 0).any():
        raise not_finite("the image tokenizer's features", model.decoder.dtype)
    return codes
