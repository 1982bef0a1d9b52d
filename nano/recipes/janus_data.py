"""The training examples of `janus-nano`: rendered and encoded ahead, by all processors and one device.

Of pictures to paint only the codes are kept, those to read stay as pixels. A quarter of these are passed
through the image tokenizer, so that the model also understands the pictures it paints. Sentences are also
restated in text: of the codes of a picture few tell which color or side belongs to which thing.

N rows, T codes of a picture, S side of a picture in pixels.
"""

from collections.abc import Callable
from functools import partial
from random import Random

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ...janus.config import read_config
from ...janus.image_transform import ImageTransform
from ...learn.packed import Arrays, EncodeTurns, Turns, build, encode_to_fit, pack_rows, save_rows, stream
from ...tokenizers.vq.model import VQModel, to_uint8
from ..world.asking import KINDS as QUESTIONS
from ..world.asking import ask
from ..world.describing import describe, restate
from ..world.names import plural
from ..world.pictures import sample_size
from ..world.pieces import PAINTED
from ..world.pointing import caption
from ..world.requests import Request
from ..world.sampling import KINDS, MORE_KINDS, sample_example, sample_request
from ..world.view import View
from .janus_spec import SIDE, UNASKED, PaintEncoder, TurnEncoder, write_once
from .parts import VQ, Job
from .pictures import SHARD, to_pixels
from .tokenizer import CAPTION_REQUESTS

PAINT, READ, RESTATE = "paint.safetensors", "read.safetensors", "restate.safetensors"
"""Files of examples in a folder."""
KIND_WEIGHTS = {
    "single_object": 5, "two_object": 12, "counting": 20, "colors": 8, "position": 28, "color_attr": 28,
    "many": 6, "chain": 5, "negation": 4, "depth": 6, "size": 4, "place": 5, "mixed": 10, "match": 4,
}  # fmt: skip
"""Sampling weights of the kinds of sentences to paint; harder kinds are more frequent."""
PAINT_WIDTH, READ_WIDTH, RESTATE_WIDTH = 49, 288, 112
"""Tokens of the longest image generation prompt, with the codes a multiple of 16, of the longest
conversation, and of the longest sentence that is restated."""
MAX_QUESTIONS = 4
"""Question-answer pairs of the longest conversation."""
RECONSTRUCTED = 0.25
"""Share of the pictures to read that are encoded and decoded by the image tokenizer."""

_SQUARE = 0.75  # share of the pictures to read that have the size of those painted
_CAPTIONS = 0.08  # share of questions that ask for a caption
_SIMPLE = 0.3  # share of irregular plurals that are written as regular ones
_AT_ONCE = 125  # pictures


def paint_shard(seed: int, encode: Callable[[str], list[int]]) -> Arrays:
    """Sentences as token ids with their pictures, `pixels` uint8 `[N, S, S, 3]`."""
    rng, rows, pixels = Random(seed), [], []
    while len(rows) < SHARD:
        example = sample_example(_kind(rng), rng, "train", SIDE, SIDE, PAINTED)
        row = encode(_simple_plurals(example.prompt, example.request, rng))
        if len(row) <= PAINT_WIDTH:
            rows.append(row)
            pixels.append(example.picture.pixels_HW3)
    nothing = [[False] * len(row) for row in rows]
    return {**pack_rows(rows, nothing, PAINT_WIDTH), "pixels": np.stack(pixels)}


def restate_shard(seed: int, encoder: PaintEncoder) -> Arrays:
    """Sentences as token ids with what they say of each thing."""
    rng, rows, masks = Random(seed), [], []
    while len(rows) < SHARD:
        request = sample_request(_kind(rng), rng)
        sentence = _simple_plurals(describe(request, rng), request, rng)
        ids, learned = encoder.answered(sentence, restate(request))
        if len(ids) <= RESTATE_WIDTH:
            rows.append(ids)
            masks.append(learned)
    return pack_rows(rows, masks, RESTATE_WIDTH)


def _kind(rng: Random) -> str:
    return rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]


def _simple_plurals(prompt: str, request: Request, rng: Random) -> str:
    """The sentence, some of its irregular plurals as GenEval writes them: "sheeps", "knifes"."""
    for group in request.groups:
        simple, right = f"{group.thing}s", plural(group.thing)
        if group.count > 1 and simple != right and rng.random() < _SIMPLE:
            prompt = prompt.replace(f" {right}", f" {simple}")
    return prompt


def conversation(view: View, rng: Random) -> Turns:
    """One to four questions about a picture with their answers, now and then a caption."""
    turns, kinds = [], [kind for kind in QUESTIONS if kind not in UNASKED]
    wanted = rng.randint(1, MAX_QUESTIONS)
    while len(turns) < wanted:
        if rng.random() < _CAPTIONS:
            turns.append((rng.choice(CAPTION_REQUESTS), caption(view)))
        elif (question := ask(view, rng, rng.choice(kinds))) is not None:
            turns.append((question.text, question.answer))
    return turns


def read_shard(seed: int, encode: EncodeTurns) -> Arrays:
    """Conversations as token ids with their pictures, `tiles` uint8 `[N, 1, 3, S, S]`: most of the size of
    those painted, the others of any shape and padded as the model's processor does."""
    rng, kinds, transform = Random(seed), (*KINDS, *MORE_KINDS), ImageTransform(SIDE)
    rows, masks, tiles = [], [], []
    for _ in range(SHARD):
        size = (SIDE, SIDE) if rng.random() < _SQUARE else sample_size(rng)
        view = View(sample_example(rng.choice(kinds), rng, "train", *size).picture)
        ids, mask = encode_to_fit(encode, conversation(view, rng), READ_WIDTH)
        rows.append(ids)
        masks.append(mask)
        tiles.append(transform.fit(view.picture.image()).tiles)
    return {**pack_rows(rows, masks, READ_WIDTH), "tiles": np.stack(tiles)}


class Coder:
    """The folder's image tokenizer on the job's device. Codes are chosen in float32: many differ by less than
    bfloat16 can tell, and which of them a picture has should not be chance."""

    def __init__(self, job: Job) -> None:
        self.device = job.device
        self.model = VQModel(read_config(job.folder)[0].vq).to(job.device).eval().requires_grad_(False)
        self.model.load_state_dict({k: v.float() for k, v in load_file(job.folder / VQ).items()})
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        side = SIDE // self.model.config.downsampling
        self.grid = side, side

    def encode(self, images_N3SS: Tensor) -> Tensor:
        """Codes int16 `[N, T]` of uint8 pictures, on the device, which is not waited for."""
        parts = []
        for part in images_N3SS.split(_AT_ONCE):
            pixels = to_pixels(part.to(self.device)).contiguous(memory_format=torch.channels_last)
            parts.append(self.model.encode(pixels).short())
        return torch.cat(parts)

    def reconstruct(self, images_N3SS: Tensor) -> Tensor:
        """uint8 pictures, encoded and decoded."""
        codes = self.encode(images_N3SS).long()
        parts = []
        for part in codes.split(_AT_ONCE):
            with torch.autocast(self.device.type, torch.bfloat16):
                parts.append(to_uint8(self.model.decode(part, self.grid)).permute(0, 3, 1, 2).cpu())
        return torch.cat(parts)


def _gather(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def write_examples(job: Job) -> None:
    """Write the folder's examples, of as many sentences, conversations and restated sentences as
    `job.examples` says. Files that are there stay."""
    write_once(job.folder)
    coder = Coder(job)
    sentences, conversations, restated = (-(-count // SHARD) for count in job.examples)
    if not (job.folder / RESTATE).exists():
        shard = partial(restate_shard, encoder=PaintEncoder(job.folder))
        save_rows(job.folder / RESTATE, build(shard, restated, job.seed * 1_000_003 + 800_000, job.workers))
    if not (job.folder / PAINT).exists():
        parts, codes, shard = [], [], partial(paint_shard, encode=PaintEncoder(job.folder))
        for part in stream(shard, sentences, job.seed * 1_000_003, job.workers):
            codes.append(coder.encode(torch.from_numpy(part.pop("pixels")).permute(0, 3, 1, 2)))
            parts.append(part)
        save_rows(job.folder / PAINT, _gather(parts) | {"codes": torch.cat(codes).cpu().numpy()})
    if not (job.folder / READ).exists():
        parts, shard = [], partial(read_shard, encode=TurnEncoder(job.folder))
        for part in stream(shard, conversations, job.seed * 1_000_003 + 500_000, job.workers):
            count = round(len(part["tiles"]) * RECONSTRUCTED)
            first = torch.from_numpy(part["tiles"][:count, 0])
            part["tiles"][:count, 0] = coder.reconstruct(first).numpy()
            parts.append(part)
        save_rows(job.folder / READ, _gather(parts))
