"""What is measured of our models: decoding steps of images and answers, and whole images where that is quick.

B images or conversations, R decoder rows, D decoder width.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...blocks.chat.text_generation import text_head
from ...blocks.device import synchronize
from ...blocks.engine.generate import Sequences, scheduler_of
from ...blocks.model.decoder import Decoder
from ...blocks.sampling.request import SamplingParams
from ...janus.image_generation import ImageGenerationOptions, decode_images, generate_codes, image_head
from ...janus.model import JanusModel
from ...text.model import TextModel
from ...vl2.config import VL2Config
from ...vl2.model import VL2Model
from ...vl2.tiles import num_image_tokens
from .measure import Bench, Line, reset_peak, step_bytes
from .windows import bench_windows

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


def time_steps(
    bench: Bench, decoder: Decoder, make: Callable[[int], Sequences], amount: Amount
) -> list[float]:
    """Seconds of a step, of each run after a warm-up, without the prompts.

    `make(max_new_tokens)` gives the sequences to generate.
    """
    seconds = []
    for _ in range(1 + amount.repeats):
        tokens = make(amount.steps + 1 + scheduler_of(decoder).runner.lag).run(decoder)
        next(tokens)
        if not seconds:
            reset_peak(bench.device)
        synchronize(bench.device)
        start = time.perf_counter()
        for _ in tokens:
            pass
        synchronize(bench.device)
        seconds.append((time.perf_counter() - start) / amount.steps)
    return seconds[1:]


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
        decode_images(model, generate_codes(model, cond, uncond, options, list(range(batch)))[0])

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
    total, options = model.config.num_codes, ImageGenerationOptions()
    rows = random_rows(model.decoder, 2 * batch, PROMPT + total // 2 - amount.steps // 2)
    prompts = list(zip(rows[::2], rows[1::2], strict=True))

    def make(tokens: int) -> Sequences:
        head = image_head(model)
        return Sequences(head, prompts, options.sampling, range(batch), tokens, speculate=False)

    note = f"{amount.steps} steps a run in the middle of a picture of {total}"
    times = time_steps(bench, model.decoder, make, amount)
    work = f"painting, a step of {2 * batch} rows"
    line = bench.add("bifrons", work, times, items=batch, unit=" tokens/s", limit=limit, note=note)
    if model.decoder.group is None:  # it captures passes by itself, of which other ranks know nothing
        bench_windows(bench, model, batch, PROMPT + total // 2, line.seconds, amount.repeats)


def _bench_rest(bench: Bench, model: JanusModel, prompts: list[Tensor], amount: Amount) -> None:
    """Prompts, the VQ decoder, and the vision encoder."""
    decoder, config, rows = model.decoder, model.config, len(prompts)
    dtype = decoder.embed_tokens.weight.dtype

    def read() -> None:
        embedded = [model.embed_text(ids) for ids in prompts]
        pairs = list(zip(embedded[::2], embedded[1::2], strict=True))
        params = SamplingParams(0.0, guidance_scale=1.0)
        Sequences(image_head(model), pairs, params, range(rows // 2), 1).run_all(decoder)

    work = f"prompt of {PROMPT} tokens and a token, {rows} rows"
    bench.measure("bifrons", work, read, repeats=amount.repeats)
    codes = torch.randint(0, config.vq.codebook_size, (1, config.num_codes), device=bench.device)
    work = "VQ decoder, 1 picture"  # captured the second time, as the vision encoder is
    bench.measure("bifrons", work, lambda: decode_images(model, codes), repeats=amount.repeats, warmup=2)
    side = config.vision.image_size
    pixels = torch.rand(1, 3, side, side, device=bench.device).to(dtype)
    work = "SigLIP and adaptor, 1 picture"
    bench.measure("bifrons", work, lambda: model.embed_images(pixels), repeats=amount.repeats, warmup=2)


def prompt_length(config: VL2Config) -> int:
    """Tokens of a prompt of `bench_vl2`."""
    return num_image_tokens(_TILES, config.tile_side) + _QUESTION


def answering_limit(model: VL2Model, batch: int, bandwidth: float, amount: Amount) -> float:
    """The limit in seconds of a step of answers; `model` may be on the meta device."""
    filled = prompt_length(model.config) + amount.steps / 2
    return step_bytes(model.decoder, [model.language.lm_head], batch, filled) / bandwidth


@torch.no_grad()
def bench_vl2(bench: Bench, model: VL2Model, batch: int, bandwidth: float, amount: Amount) -> None:
    """Measure DeepSeek-VL2: steps of answers, first tokens and the vision encoder."""
    decoder, vision = model.decoder, model.config.vision
    device, dtype = bench.device, decoder.embed_tokens.weight.dtype
    length = prompt_length(model.config)
    count = 1 + _TILES[0] * _TILES[1]
    pixels = torch.rand(count, 3, vision.image_size, vision.image_size, device=device).to(dtype)
    question = torch.randint(0, decoder.config.vocab_size, (_QUESTION,), device=device)

    def first() -> None:
        picture = model.embed_images(pixels, [_TILES])[0]
        row = torch.cat((picture, model.embed_text(question)))
        head = text_head(model)
        Sequences(head, [[row]], SamplingParams(0.0), range(1), 1).run_all(decoder)

    bench_answers(bench, model, model.language.lm_head, batch, length, bandwidth, amount)
    work = f"first token, prompt of {length} tokens with {_TILES[0]} x {_TILES[1]} tiles"
    # Prefill of a length and encoding of a number of tiles are captured the second time they come up.
    bench.measure("bifrons", work, first, repeats=max(2, amount.repeats // 2), warmup=2)
    work = f"SigLIP and adaptor, {count} tiles"
    bench.measure("bifrons", work, lambda: model.embed_tiles(pixels), repeats=2, warmup=2)


def bench_answers(
    bench: Bench,
    model: VL2Model | TextModel,
    lm_head: nn.Module,
    rows: int,
    filled: int,
    bandwidth: float,
    amount: Amount,
) -> Line:
    """Measure steps of answers after prompts of `filled` tokens."""
    decoder = model.decoder
    limit = step_bytes(decoder, [lm_head], rows, filled + amount.steps / 2) / bandwidth
    prompts = [[row] for row in random_rows(decoder, rows, filled)]
    head = text_head(model)

    def make(tokens: int) -> Sequences:
        return Sequences(head, prompts, SamplingParams(0.0), range(rows), tokens, speculate=False)

    work = f"answering, a step of {rows} conversation{'s' if rows > 1 else ''}"
    note = f"{amount.steps} steps a run after a prompt of {filled} tokens, greedy"
    times = time_steps(bench, decoder, make, amount)
    return bench.add("bifrons", work, times, items=rows, unit=" tokens/s", limit=limit, note=note)
