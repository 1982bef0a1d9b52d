"""Training examples of the synthetic world: packed scenes and token ids, generated on all CPU cores.

Shape suffixes: N examples, B rows of a batch, L tokens of a row (right-padded), T tokens of an image,
D decoder width.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...blocks.files import atomic_write
from ..world.questions import sample_question
from ..world.renderer import pack
from ..world.scene import Scene, has_held_out_relation, place_in_quadrants, reading_order, sample_scene
from ..world.sentences import KINDS, Case, sample_case
from ..world.wording import article, enumeration

KIND_WEIGHTS = {
    "single_object": 6,
    "two_object": 18,
    "counting": 34,
    "colors": 10,
    "position": 18,
    "color_attr": 22,
    "mixed": 12,
}
"""Sampling weights of the kinds of image generation prompts; harder kinds are more frequent."""

SHARD = 10_000
"""Examples of a shard."""
MAX_QUESTIONS = 4
"""Question-answer pairs of the longest Janus conversation."""

Turns = list[tuple[str, str]]
"""Questions with their answers."""
EncodeTurns = Callable[[Turns], tuple[list[int], list[bool]]]
"""Token ids of a conversation, and its loss mask."""
Arrays = dict[str, np.ndarray]


@dataclass
class Examples:
    """Training examples: `ids` int16 `[N, L]`, `lengths` `[N]`, `loss_mask` bool `[N, L]`, packed scenes."""

    ids: Tensor
    lengths: Tensor
    loss_mask: Tensor
    scenes: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: str | torch.device) -> "Examples":
        """Copy to a device, except the scalar aspect, which the renderer reads on the host."""
        scenes = {name: value if value.ndim == 0 else value.to(device) for name, value in self.scenes.items()}
        return Examples(self.ids.to(device), self.lengths.to(device), self.loss_mask.to(device), scenes)

    def take(self, index: Tensor) -> "Examples":
        """The examples at `index`, int64 `[B]`."""
        scenes = {name: value if value.ndim == 0 else value[index] for name, value in self.scenes.items()}
        return Examples(self.ids[index], self.lengths[index], self.loss_mask[index], scenes)


def answer_loss(text_logits: Callable[[Tensor], Tensor], hidden_BLD: Tensor, batch: Examples) -> Tensor:
    """Mean next-token cross-entropy over the loss mask, from the decoder's hidden states."""
    ids, mask = batch.ids.long(), batch.loss_mask[:, 1:].flatten()
    logits = text_logits(hidden_BLD[:, : ids.shape[1] - 1]).float()
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * mask).sum() / mask.sum()


def insert_image_tokens(x_BLD: Tensor, image_BTD: Tensor, start: int) -> Tensor:
    """Embeddings with those of one image per row at positions `start` to `start` + T."""
    return torch.cat((x_BLD[:, :start], image_BTD, x_BLD[:, start + image_BTD.shape[1] :]), dim=1)


def collate(
    rows: Sequence[list[int]], masks: Sequence[list[bool]], scenes: Sequence[Scene], width: int
) -> Arrays:
    """Rows of token ids and loss masks padded to `width`, with their packed scenes, in compact dtypes.

    Arrays rather than tensors, which torch passes between processes in shared memory with one file descriptor
    each. Raises ValueError for a row longer than `width`.
    """
    ids = np.zeros((len(rows), width), dtype=np.int16)
    loss_mask = np.zeros((len(rows), width), dtype=bool)
    for index, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        if len(row) > width:
            raise ValueError(f"a row of {len(row)} tokens does not fit in {width}")
        ids[index, : len(row)] = row
        loss_mask[index, : len(row)] = mask
    packed = {name: value.numpy() for name, value in pack(scenes).items()}
    # Multiples of 1/32 are exact in half precision.
    packed["place"] = packed["place"].astype(np.float16)
    lengths = np.array([len(row) for row in rows], dtype=np.int16)
    return {"ids": ids, "lengths": lengths, "learn": loss_mask, **packed}


def training_scene(rng: Random, index: int) -> Scene:
    """A scene of the training split: any scene for an odd `index`, a sentence's scene for an even one."""
    return sample_scene(rng) if index % 2 else sample_case(rng.choice((*KINDS, "mixed")), rng).scene


def with_objects_in_quadrants(case: Case, rng: Random) -> Case:
    """A case of three or four objects with each in a quadrant of its own; other cases are unchanged.

    Each object then has room whatever was generated before it, and no room is left for one more: in models
    trained on free positions, too many objects were the most frequent error.
    """
    objects = case.scene.objects
    while len(objects) > 2:
        scene = place_in_quadrants(rng, [t.shape for t in objects], [t.color for t in objects])
        if not has_held_out_relation(scene.objects):
            return replace(case, scene=scene)
    return case


def prompt_shard(seed: int, encode: Callable[[str], list[int]], width: int) -> Arrays:
    """Image generation prompts with their scenes; `encode` makes the token ids of a whole prompt."""
    rng = Random(seed)
    kinds, weights = list(KIND_WEIGHTS), list(KIND_WEIGHTS.values())
    cases = [
        with_objects_in_quadrants(sample_case(kind, rng), rng)
        for kind in rng.choices(kinds, weights, k=SHARD)
    ]
    rows = [encode(case.metadata["prompt"]) for case in cases]
    return collate(rows, [[False] * len(row) for row in rows], [case.scene for case in cases], width)


def caption(scene: Scene) -> str:
    """The answer to "Describe the picture.": the objects in reading order."""
    return enumeration([article(f"{obj.color} {obj.shape}") for obj in reading_order(scene)])


CAPTION_REQUESTS = (
    "Describe the picture.",
    "Describe this image.",
    "Describe the scene.",
    "Describe what you see.",
    "Write a caption for this picture.",
)


def conversation(scene: Scene, rng: Random) -> Turns:
    """One to four questions about a scene with their answers, occasionally a caption."""
    turns = []
    for _ in range(rng.randint(1, MAX_QUESTIONS)):
        if rng.random() < 0.08:
            turns.append((rng.choice(CAPTION_REQUESTS), caption(scene)))
        else:
            question = sample_question(scene, rng)
            turns.append((question.text, question.answer))
    return turns


def encode_to_fit(encode: EncodeTurns, turns: Turns, width: int) -> tuple[list[int], list[bool]]:
    """Encode a conversation without as many of its last turns as don't fit in `width` tokens."""
    ids, mask = encode(turns)
    while len(ids) > width:
        turns = turns[:-1]
        ids, mask = encode(turns)
    return ids, mask


def conversation_shard(
    seed: int, converse: Callable[[Scene, Random], Turns], encode: EncodeTurns, width: int
) -> Arrays:
    """Conversations, made by `converse`, about one image; see `training_scene` for the scenes."""
    rng = Random(seed)
    rows, masks, scenes = [], [], []
    for index in range(SHARD):
        scene = training_scene(rng, index)
        ids, mask = encode_to_fit(encode, converse(scene, rng), width)
        rows.append(ids)
        masks.append(mask)
        scenes.append(scene)
    return collate(rows, masks, scenes, width)


def build(shard: Callable[[int], Arrays], shards: int, seed: int, workers: int) -> Arrays:
    """Concatenate shards generated in parallel; shard i is seeded with `seed + i` on any worker."""
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        parts = list(pool.map(shard, range(seed, seed + shards)))
    return {
        name: value if value.ndim == 0 else np.concatenate([part[name] for part in parts])
        for name, value in parts[0].items()
    }


def save_examples(path: Path, **groups: Arrays) -> None:
    """Write named groups of arrays to one compressed file, atomically."""
    arrays = {f"{group}.{name}": array for group, rows in groups.items() for name, array in rows.items()}
    with atomic_write(path, durable=False) as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def load_examples(path: Path, group: str) -> Examples:
    """Load one group of arrays from a file of `save_examples`."""
    with np.load(path) as file:
        tensors = {
            k.removeprefix(f"{group}."): torch.from_numpy(file[k]) for k in file if k.startswith(f"{group}.")
        }
    ids, lengths, loss_mask = (tensors.pop(name) for name in ("ids", "lengths", "learn"))
    return Examples(ids, lengths.long(), loss_mask, {**tensors, "place": tensors["place"].float()})
