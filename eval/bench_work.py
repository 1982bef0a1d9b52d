"""What is measured of our models: steps of painting and talking, whole pictures where they are quick.

B pictures or conversations, R rows of the decoder, D its width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..blocks.decoder import Decoder
from ..blocks.generation import decode_one, prefill
from ..blocks.kv_cache import KVCache
from ..blocks.sampling import guide, sample
from ..janus.model import JanusModel
from ..janus.options import PaintOptions
from ..janus.painting import decode, paint
from ..vl2.model import VL2Model
from ..vl2.tiles import num_image_tokens
from .bench_measure import Bench, step_bytes

PROMPT = 32
"""Tokens of a painting prompt."""
_TILES = (2, 2)
_QUESTION = 40  # tokens beside those of the picture: 1,063 in all at the released models' sizes


@dataclass(frozen=True)
class Amount:
    """How much is measured: steps a run, runs, and whether whole pictures are painted."""

    steps: int
    repeats: int
    whole: bool


def filled_cache(decoder: Decoder, rows: int, filled: int, more: int) -> KVCache:
    """A cache in which `filled` positions of each row hold something, and `more` fit."""
    weight = decoder.embed_tokens.weight
    cache = decoder.config.new_cache(rows, filled + more, device=weight.device, dtype=weight.dtype)
    for buffer in cache.buffers:
        buffer.normal_()
    rewind(cache, filled)
    return cache


def rewind(cache: KVCache, filled: int) -> None:
    cache.positions.fill_(filled)
    cache.filled = filled


def painting_limit(model: JanusModel, batch: int, bandwidth: float) -> float:
    """Seconds of a guided step in the middle of a picture; `model` may be on meta in its real dtype."""
    slots = PROMPT + model.config.num_codes / 2
    return step_bytes(model.decoder, [model.gen_head, model.gen_aligner], 2 * batch, slots) / bandwidth


@torch.no_grad()
def bench_janus(bench: Bench, model: JanusModel, batch: int, bandwidth: float, amount: Amount) -> None:
    decoder, total = model.decoder, model.config.num_codes
    rows, options = 2 * batch, PaintOptions()
    limit = painting_limit(model, batch, bandwidth)
    _bench_painting(bench, model, rows, limit, amount)
    vocabulary = decoder.config.vocab_size
    prompts = [torch.randint(0, vocabulary, (PROMPT,), device=bench.device) for _ in range(rows)]
    _bench_rest(bench, model, prompts, amount)
    if not amount.whole:
        return

    def picture() -> None:
        decode(model, paint(model, prompts[:batch], prompts[batch:], options, list(range(batch))))

    work = f"{batch} whole picture{'s' if batch > 1 else ''}, guidance {options.guidance_scale:g}"
    bench.measure("bifrons", work, picture, repeats=2, items=batch, unit=" pictures/s", limit=limit * total)


def _bench_painting(bench: Bench, model: JanusModel, rows: int, limit: float, amount: Amount) -> None:
    """Steps as `paint` does them, with rows that are guided pairs, from the middle of a picture on."""
    decoder, total = model.decoder, model.config.num_codes
    device, width = bench.device, decoder.config.hidden_size
    options, batch = PaintOptions(), rows // 2
    middle = PROMPT + total // 2 - amount.steps // 2
    seeds = torch.arange(batch, device=device)
    cache = filled_cache(decoder, rows, middle, amount.steps)
    start = torch.randn(rows, width, device=device).to(decoder.embed_tokens.weight.dtype)

    def steps() -> None:
        hidden = start
        rewind(cache, middle)
        for step in range(amount.steps):
            cond, uncond = model.image_logits(hidden).float().chunk(2)
            logits = guide(cond, uncond, options.guidance_scale)
            tokens = sample(logits, options.sampling, seeds, torch.full_like(seeds, step))
            hidden = decode_one(decoder, model.embed_codes(tokens.repeat(2)), cache)

    bench.measure(
        "bifrons",
        f"painting, a step of {rows} rows",
        steps,
        repeats=amount.repeats,
        per=amount.steps,
        items=batch,
        unit=" tokens/s",
        limit=limit,
        note=f"{amount.steps} steps a run in the middle of a picture of {total}",
    )


def _bench_rest(bench: Bench, model: JanusModel, prompts: list[Tensor], amount: Amount) -> None:
    """What comes before and after the steps of a picture, and the eye."""
    decoder, config, rows = model.decoder, model.config, len(prompts)
    dtype = decoder.embed_tokens.weight.dtype

    def read() -> None:
        cache = decoder.config.new_cache(rows, PROMPT, device=bench.device, dtype=dtype)
        prefill(decoder, [model.embed_text(ids) for ids in prompts], cache)

    bench.measure("bifrons", f"prompt of {PROMPT} tokens, {rows} rows", read, repeats=amount.repeats)
    codes = torch.randint(0, config.vq.codebook_size, (1, config.num_codes), device=bench.device)
    bench.measure(
        "bifrons", "VQ decoder, 1 picture", lambda: decode(model, codes), repeats=amount.repeats
    )
    side = config.vision.image_size
    pixels = torch.rand(1, 3, side, side, device=bench.device).to(dtype)
    work = "SigLIP and adaptor, 1 picture"
    bench.measure("bifrons", work, lambda: model.embed_pictures(pixels), repeats=amount.repeats)


@torch.no_grad()
def bench_vl2(bench: Bench, model: VL2Model, batch: int, bandwidth: float, amount: Amount) -> None:
    decoder, vision = model.decoder, model.config.vision
    device, dtype = bench.device, decoder.embed_tokens.weight.dtype
    length = num_image_tokens(_TILES, model.config.tile_side) + _QUESTION
    count = 1 + _TILES[0] * _TILES[1]
    pixels = torch.rand(count, 3, vision.image_size, vision.image_size, device=device).to(dtype)
    question = torch.randint(0, decoder.config.vocab_size, (_QUESTION,), device=device)

    def first() -> None:
        picture = model.embed_pictures(pixels, [_TILES])[0]
        cache = decoder.config.new_cache(1, length, device=device, dtype=dtype)
        hidden = prefill(decoder, [torch.cat((picture, model.embed_text(question)))], cache)
        model.text_logits(hidden).argmax(-1)

    _bench_talking(bench, model, batch, length, bandwidth, amount)
    work = f"first token, prompt of {length} tokens with {_TILES[0]} x {_TILES[1]} tiles"
    bench.measure("bifrons", work, first, repeats=max(2, amount.repeats // 2))
    bench.measure(
        "bifrons", f"SigLIP and adaptor, {count} tiles", lambda: model.embed_tiles(pixels), repeats=2
    )


def _bench_talking(
    bench: Bench, model: VL2Model, rows: int, filled: int, bandwidth: float, amount: Amount
) -> None:
    decoder = model.decoder
    cache = filled_cache(decoder, rows, filled, amount.steps)
    limit = step_bytes(decoder, [model.language.lm_head], rows, filled + amount.steps / 2) / bandwidth
    first = torch.zeros(rows, dtype=torch.long, device=bench.device)

    def steps() -> None:
        tokens = first
        rewind(cache, filled)
        for _ in range(amount.steps):
            hidden = decode_one(decoder, model.embed_text(tokens), cache)
            tokens = model.text_logits(hidden).argmax(-1)

    bench.measure(
        "bifrons",
        f"answering, a step of {rows} conversation{'s' if rows > 1 else ''}",
        steps,
        repeats=amount.repeats,
        per=amount.steps,
        items=rows,
        unit=" tokens/s",
        limit=limit,
        note=f"{amount.steps} steps a run after a prompt of {filled} tokens, greedy",
    )
