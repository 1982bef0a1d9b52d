"""What is measured of our models: decoding steps of images and answers, and whole images where that is quick.

B images or conversations, R decoder rows, D decoder width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...blocks.engine.generate import captures, generate_all
from ...blocks.engine.graph_generation import graph_pool_of
from ...blocks.engine.prefill import decode_one
from ...blocks.engine.request import GenerationBatch, SamplingParams, TokenHead
from ...blocks.engine.sampling import expand_rows, sample
from ...blocks.model.decoder import Decoder
from ...blocks.model.kv_cache import KVCache
from ...janus.image_generation import ImageGenerationOptions, decode_images, generate_codes
from ...janus.model import JanusModel
from ...vl2.model import VL2Model
from ...vl2.tiles import num_image_tokens
from .measure import Bench, step_bytes

PROMPT = 32
"""Tokens of an image prompt."""
_TILES = (2, 2)
_QUESTION = 40  # tokens beside those of the image: 1,063 in all at the released models' sizes


@dataclass(frozen=True)
class Amount:
    """How much is measured: steps per run, runs, and whether whole images are generated."""

    steps: int
    repeats: int
    whole: bool


def filled_cache(decoder: Decoder, rows: int, filled: int, more: int) -> KVCache:
    """A cache in which `filled` positions of each row hold something, and `more` fit."""
    cache = decoder.new_cache(rows, filled + more)
    for buffer in cache.buffers:
        buffer.normal_()
    rewind(cache, filled)
    return cache


def rewind(cache: KVCache, filled: int) -> None:
    """Set every row back to `filled` positions."""
    cache.positions.fill_(filled)
    cache.filled = filled


def stepper(decoder: Decoder, batch: GenerationBatch) -> Callable[[], None]:
    """A function that runs a batch's decoding steps without its prefill, captured or not, as `generate`
    does."""
    head, sampling, filled = batch.head, batch.sampling, batch.longest
    if captures(decoder, head):
        buffers = graph_pool_of(decoder).take(decoder, batch)
        buffers.begin(decoder, batch)

        def replayed() -> None:
            buffers.rewind([len(row) for row in batch.rows])
            for step in range(batch.max_new_tokens):
                buffers.step(decoder, head, sampling.mode, step)

        return replayed
    cache = filled_cache(decoder, len(batch.rows), filled, batch.max_new_tokens)
    seeds = torch.tensor(batch.seeds, device=cache.positions.device)
    start = torch.stack([row[-1] for row in batch.rows])

    def launched() -> None:
        hidden = start
        rewind(cache, filled)
        for step in range(batch.max_new_tokens):
            steps = torch.full_like(seeds, step)
            logits = head.logits(hidden)
            tokens = sample(logits, sampling.mode, sampling.tensors, seeds, steps)
            hidden = decode_one(decoder, expand_rows(head.embed(tokens), sampling.mode), cache)

    return launched


def random_rows(decoder: Decoder, rows: int, length: int) -> list[Tensor]:
    """Random prompt embeddings, `rows` times `[length, D]`."""
    weight = decoder.embed_tokens.weight
    return list(torch.randn(rows, length, weight.shape[1], device=weight.device).to(weight.dtype))


def painting_limit(model: JanusModel, batch: int, bandwidth: float) -> float:
    """The limit in seconds of a guided step in the middle of an image; `model` may be on the meta device."""
    slots = PROMPT + model.config.num_codes / 2
    return step_bytes(model.decoder, [model.gen_head, model.gen_aligner], 2 * batch, slots) / bandwidth


@torch.no_grad()
def bench_janus(bench: Bench, model: JanusModel, batch: int, bandwidth: float, amount: Amount) -> None:
    """Measure Janus: whole images, steps, prompts, the VQ decoder and the vision encoder."""
    total = model.config.num_codes
    options = ImageGenerationOptions()
    limit = painting_limit(model, batch, bandwidth)
    vocabulary = model.decoder.config.vocab_size
    prompts = [torch.randint(0, vocabulary, (PROMPT,), device=bench.device) for _ in range(2 * batch)]

    def picture() -> None:
        cond, uncond = prompts[:batch], prompts[batch:]
        decode_images(model, generate_codes(model, cond, uncond, options, list(range(batch))))

    if amount.whole:
        work = f"{batch} whole picture{'s' if batch > 1 else ''}, guidance {options.guidance_scale:g}"
        rate = " pictures/s"
        note = "with all that is made once: kernels built or read, steps captured"
        first = f"{work}, the first"
        bench.measure("bifrons", first, picture, repeats=1, warmup=0, items=batch, unit=rate, note=note)
        bench.measure("bifrons", work, picture, repeats=3, items=batch, unit=rate, limit=limit * total)
    _bench_images(bench, model, batch, limit, amount)
    _bench_rest(bench, model, prompts, amount)


def _bench_images(bench: Bench, model: JanusModel, batch: int, limit: float, amount: Amount) -> None:
    """Steps of `generate_codes`, with rows that are guided pairs, from the middle of a picture on."""
    decoder, total, options = model.decoder, model.config.num_codes, ImageGenerationOptions()
    steps = GenerationBatch(
        rows=random_rows(decoder, 2 * batch, PROMPT + total // 2 - amount.steps // 2),
        head=TokenHead(model.embed_codes, model.image_logits),
        sampling=options.sampling,
        seeds=range(batch),
        max_new_tokens=amount.steps,
    )
    note = f"{amount.steps} steps a run in the middle of a picture of {total}"
    _measure_steps(bench, f"painting, a step of {2 * batch} rows", decoder, steps, amount, limit, note)


def _measure_steps(
    bench: Bench,
    work: str,
    decoder: Decoder,
    steps: GenerationBatch,
    amount: Amount,
    limit: float,
    note: str,
) -> None:
    """Measure a decode step of a batch; `limit` is the least time in seconds that it can take."""
    bench.measure(
        "bifrons",
        work,
        stepper(decoder, steps),
        repeats=amount.repeats,
        per=amount.steps,
        items=len(steps.seeds),
        unit=" tokens/s",
        limit=limit,
        note=note,
    )


def _bench_rest(bench: Bench, model: JanusModel, prompts: list[Tensor], amount: Amount) -> None:
    """Prompts, the VQ decoder, and the vision encoder."""
    decoder, config, rows = model.decoder, model.config, len(prompts)
    dtype = decoder.embed_tokens.weight.dtype

    def read() -> None:
        embedded = [model.embed_text(ids) for ids in prompts]
        head = TokenHead(model.embed_codes, model.image_logits)
        params = SamplingParams(0.0, guidance_scale=1.0)
        generate_all(decoder, GenerationBatch(embedded, head, params, range(rows // 2), 1))

    work = f"prompt of {PROMPT} tokens and a token, {rows} rows"
    bench.measure("bifrons", work, read, repeats=amount.repeats)
    codes = torch.randint(0, config.vq.codebook_size, (1, config.num_codes), device=bench.device)
    work = "VQ decoder, 1 picture"  # captured the second time, as the vision encoder is
    bench.measure("bifrons", work, lambda: decode_images(model, codes), repeats=amount.repeats, warmup=2)
    side = config.vision.image_size
    pixels = torch.rand(1, 3, side, side, device=bench.device).to(dtype)
    work = "SigLIP and adaptor, 1 picture"
    bench.measure("bifrons", work, lambda: model.embed_images(pixels), repeats=amount.repeats, warmup=2)


@torch.no_grad()
def bench_vl2(bench: Bench, model: VL2Model, batch: int, bandwidth: float, amount: Amount) -> None:
    """Measure DeepSeek-VL2: steps of answers, first tokens and the vision encoder."""
    decoder, vision = model.decoder, model.config.vision
    device, dtype = bench.device, decoder.embed_tokens.weight.dtype
    length = num_image_tokens(_TILES, model.config.tile_side) + _QUESTION
    count = 1 + _TILES[0] * _TILES[1]
    pixels = torch.rand(count, 3, vision.image_size, vision.image_size, device=device).to(dtype)
    question = torch.randint(0, decoder.config.vocab_size, (_QUESTION,), device=device)

    def first() -> None:
        picture = model.embed_images(pixels, [_TILES])[0]
        row = torch.cat((picture, model.embed_text(question)))
        head = TokenHead(model.embed_text, model.text_logits)
        generate_all(decoder, GenerationBatch([row], head, SamplingParams(0.0), range(1), 1))

    _bench_answers(bench, model, batch, length, bandwidth, amount)
    work = f"first token, prompt of {length} tokens with {_TILES[0]} x {_TILES[1]} tiles"
    # Prefill of a length and encoding of a number of tiles are captured the second time they come up.
    bench.measure("bifrons", work, first, repeats=max(2, amount.repeats // 2), warmup=2)
    work = f"SigLIP and adaptor, {count} tiles"
    bench.measure("bifrons", work, lambda: model.embed_tiles(pixels), repeats=2, warmup=2)


def _bench_answers(
    bench: Bench, model: VL2Model, rows: int, filled: int, bandwidth: float, amount: Amount
) -> None:
    decoder = model.decoder
    limit = step_bytes(decoder, [model.language.lm_head], rows, filled + amount.steps / 2) / bandwidth
    steps = GenerationBatch(
        rows=random_rows(decoder, rows, filled),
        head=TokenHead(model.embed_text, model.text_logits),
        sampling=SamplingParams(0.0),
        seeds=range(rows),
        max_new_tokens=amount.steps,
    )
    work = f"answering, a step of {rows} conversation{'s' if rows > 1 else ''}"
    note = f"{amount.steps} steps a run after a prompt of {filled} tokens, greedy"
    _measure_steps(bench, work, decoder, steps, amount, limit, note)
