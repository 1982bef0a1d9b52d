"""Painting: prompts to image tokens to pictures.

N pictures, L prompt tokens, T image tokens of a picture, D decoder width.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..blocks.chat.text_generation import MAX_SEED
from ..blocks.engine.generate import GenerationBatch, captures, check_context, generate, generate_all
from ..blocks.engine.graph_generation import bucket_below, graph_pool_of, slots_for
from ..blocks.engine.sampling import Choosing, TokenHead, paired
from ..blocks.engine.sampling_params import Sampling, check_integer, check_number, guide
from ..blocks.errors import OptionError
from ..blocks.placement.memory_budget import batch_over_devices, batch_that_fits, rows_that_fit
from ..tokenizers.vq.model import to_uint8
from .model import JanusModel
from .variants import image_generation_workload, vq_activations

Callback = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class ImageGenerationOptions:
    """How a picture is painted. `guidance_scale=1` means no guidance: no unconditional rows are computed."""

    guidance_scale: float = 5.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    negative_prompt: str | None = None

    def __post_init__(self) -> None:
        check_number("guidance_scale", self.guidance_scale, low=0.0)
        _ = self.sampling
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
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)


def image_seeds(seed: int | Sequence[int] | None, prompts: int, per_prompt: int) -> list[int]:
    """One seed per picture, prompt-major.

    A number: picture j of every prompt gets `seed + j`, so that a picture's seed does not depend on
    which other prompts are in the call. None: a fresh random start for each prompt. A list: one
    number per prompt (then + j) or one per picture.
    """
    if seed is None:
        starts = [secrets.randbelow(2**32) for _ in range(prompts)]
    elif isinstance(seed, int):
        starts = [seed] * prompts
    elif isinstance(seed, Sequence) and not isinstance(seed, str) and len(seed) == prompts:
        starts = list(seed)
    elif isinstance(seed, Sequence) and not isinstance(seed, str) and len(seed) == prompts * per_prompt:
        return [check_integer("seed", number, 0, MAX_SEED) for number in seed]
    else:
        raise OptionError(
            f"seed is {seed!r}; accepted: None, a whole number, or a list of {prompts} (one per prompt) "
            f"or {prompts * per_prompt} (one per picture)"
        )
    for start in starts:
        check_integer("seed", start, 0, MAX_SEED - per_prompt)
    return [start + index for start in starts for index in range(per_prompt)]


def _home(model: JanusModel) -> torch.device:
    """Where ids, codes and pixels go; an `OptionError` where what paints was not loaded."""
    _ = model.gen_embed.weight
    return model.decoder.device


def image_generation_batch(
    model: JanusModel,
    cond: Sequence[Tensor],
    uncond: Sequence[Tensor] | None,
    options: ImageGenerationOptions,
    seeds: Sequence[int],
) -> GenerationBatch:
    """The generation of N pictures' image tokens.

    `cond` and `uncond` are prompt ids `[L]` per picture; None for `uncond` computes without guidance.
    """
    device = _home(model)
    return GenerationBatch(
        rows=[model.embed_text(ids.to(device)) for ids in paired(cond, uncond)],
        head=TokenHead(model.embed_codes, model.image_logits),
        choosing=Choosing(options.sampling, None if uncond is None else options.guidance_scale),
        seeds=seeds,
        max_new_tokens=model.config.num_codes,
    )


@torch.no_grad()
def paint(
    model: JanusModel,
    cond: Sequence[Tensor],
    uncond: Sequence[Tensor] | None,
    options: ImageGenerationOptions,
    seeds: Sequence[int],
    callback: Callback | None = None,
) -> Tensor:
    """Codes `[N, T]`, computed in batches that fit in memory; a picture does not depend on the split.

    `callback(step, total, codes)` is called after every step of a batch with the codes of that batch so
    far, `[n, step]`; an exception from it stops the work.
    """
    total = model.config.num_codes
    longest = max(len(ids) for ids in [*cond, *(uncond or ())])
    check_context(longest, total, model.config.decoder.max_positions)
    size = _batch(model, uncond is not None, longest)
    done = []
    for start in range(0, len(cond), size):
        part = slice(start, start + size)
        batch = image_generation_batch(model, cond[part], uncond and uncond[part], options, seeds[part])
        if callback is None:
            done.append(generate_all(model.decoder, batch))
            continue
        steps = []
        for tokens in generate(model.decoder, batch):
            steps.append(tokens)
            callback(len(steps), total, torch.stack(steps, dim=1).cpu())
        done.append(torch.stack(steps, dim=1).cpu())
    return torch.cat(done)


def _batch(model: JanusModel, guided: bool, longest: int) -> int:
    """How many pictures to compute at once."""
    decoder, total, device = model.decoder, model.config.num_codes, _home(model)
    if decoder.layout is not None:
        work = image_generation_workload(model.config, guided, longest)
        return batch_over_devices(work, decoder.layout, decoder.dtype)
    if not captures(decoder, TokenHead(model.embed_codes, model.image_logits)):
        work = image_generation_workload(model.config, guided, longest)
        return batch_that_fits(work, device, decoder.dtype)
    # A captured batch is as large as its buffers, and what is kept of buffers makes room for it.
    work = image_generation_workload(model.config, guided, slots_for(longest + total) - total)
    kept = graph_pool_of(decoder).bytes
    return bucket_below(batch_that_fits(work, device, decoder.dtype, kept))


@torch.no_grad()
def decode(model: JanusModel, codes_NT: Tensor) -> list[Image.Image]:
    """Codes `[N, T]` -> pictures, one or a few at a time: the decoder's activations are large."""
    device, dtype = _home(model), model.decoder.dtype
    size = model.gen_vision_model.max_batch(model.config.grid)
    if size > 1:
        size = min(size, rows_that_fit(vq_activations(model.config) * dtype.itemsize, device))
    pictures = []
    for codes in codes_NT.to(device).split(size):
        pictures += map(Image.fromarray, to_uint8(model.decode_codes(codes)).cpu().numpy())
    return pictures


@torch.no_grad()
def next_image_logits(
    model: JanusModel, cond: Tensor, uncond: Tensor | None, guidance_scale: float
) -> Tensor:
    """Guided logits of the first image token, float32 `[C]`."""
    device = _home(model)
    rows = [cond] if uncond is None else [cond, uncond]
    hidden = [model.decoder(model.embed_text(ids.to(device))[None])[0, -1] for ids in rows]
    logits = model.image_logits(torch.stack(hidden)).float()
    return (logits[0] if uncond is None else guide(logits[0], logits[1], guidance_scale)).cpu()


@torch.no_grad()
def score_image_codes(model: JanusModel, cond: Tensor, codes_T: Tensor) -> Tensor:
    """Log-probability of each image token after the prompt, without guidance, float32 `[T]`."""
    device = _home(model)
    codes = codes_T.to(device)
    check_context(len(cond), len(codes), model.config.decoder.max_positions)
    inputs = torch.cat((model.embed_text(cond.to(device)), model.embed_codes(codes[:-1])))
    hidden = model.decoder(inputs[None])[0, len(cond) - 1 :]
    scores = model.image_logits(hidden).float().log_softmax(-1)
    return scores.gather(1, codes[:, None])[:, 0].cpu()


@torch.no_grad()
def encode(model: JanusModel, pixels_3SS: Tensor) -> Tensor:
    """Pixels in -1..1 -> codes, int64 `[T]`."""
    pixels = pixels_3SS[None].to(_home(model), model.decoder.dtype)
    return model.gen_vision_model.encode(pixels)[0].cpu()
