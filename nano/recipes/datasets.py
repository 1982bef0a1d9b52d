"""Training examples of the small world as arrays: packed scenes with token ids, made on all CPU cores.

N examples, L text tokens of a row (padded on the right).
"""

import os
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
"""Shares of the kinds of sentence in training: more of what is hard."""

SHARD = 10_000
MAX_QUESTIONS = 4

Encode = Callable[[str], list[int]]


@dataclass
class Examples:
    """`ids` int16 `[N, L]`, `lengths` `[N]`, `learn` bool `[N, L]` (has a loss), `scenes` packed."""

    ids: Tensor
    lengths: Tensor
    learn: Tensor
    scenes: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: str | torch.device) -> "Examples":
        # The aspect is read on the host when a picture is drawn: it stays there.
        scenes = {name: value if value.ndim == 0 else value.to(device) for name, value in self.scenes.items()}
        return Examples(self.ids.to(device), self.lengths.to(device), self.learn.to(device), scenes)

    def take(self, index: Tensor) -> "Examples":
        scenes = {name: value if value.ndim == 0 else value[index] for name, value in self.scenes.items()}
        return Examples(self.ids[index], self.lengths[index], self.learn[index], scenes)


def answer_loss(text_logits: Callable[[Tensor], Tensor], hidden_BLD: Tensor, rows: Examples) -> Tensor:
    """Mean cross-entropy of the tokens that are to be learned, from hidden states of the rows' positions."""
    ids, learn = rows.ids.long(), rows.learn[:, 1:].flatten()
    logits = text_logits(hidden_BLD[:, : ids.shape[1] - 1]).float()
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * learn).sum() / learn.sum()


Arrays = dict[str, np.ndarray]


def collate(
    rows: Sequence[list[int]], learn: Sequence[list[bool]], scenes: Sequence[Scene], width: int
) -> Arrays:
    """Rows of token ids padded with 0 to `width`, compact; a row that is longer is an error.

    Arrays, not tensors: between processes torch would hand tensors over through shared memory, one file
    descriptor each.
    """
    ids = np.zeros((len(rows), width), dtype=np.int16)
    marks = np.zeros((len(rows), width), dtype=bool)
    for index, (row, mark) in enumerate(zip(rows, learn, strict=True)):
        if len(row) > width:
            raise ValueError(f"a row of {len(row)} tokens does not fit in {width}")
        ids[index, : len(row)] = row
        marks[index, : len(row)] = mark
    packed = {name: value.numpy() for name, value in pack(scenes).items()}
    # The world's lattice is exact in half precision.
    packed["place"] = packed["place"].astype(np.float16)
    lengths = np.array([len(row) for row in rows], dtype=np.int16)
    return {"ids": ids, "lengths": lengths, "learn": marks, **packed}


def with_objects_in_quadrants(case: Case, rng: Random) -> Case:
    """Three or four things put into quarters of their own: so there is room for each whatever was painted
    before it, and none for one more. (Learned from things anywhere, too many were the commonest mistake.)"""
    objects = case.scene.objects
    while len(objects) > 2:
        scene = place_in_quadrants(rng, [t.shape for t in objects], [t.color for t in objects])
        if not has_held_out_relation(scene.objects):
            return replace(case, scene=scene)
    return case


def prompt_shard(seed: int, encode: Encode, width: int) -> Arrays:
    """Sentences as painting prompts (`encode` gives the whole prompt's ids) with their scenes."""
    rng = Random(seed)
    kinds, weights = list(KIND_WEIGHTS), list(KIND_WEIGHTS.values())
    cases = [
        with_objects_in_quadrants(sample_case(kind, rng), rng)
        for kind in rng.choices(kinds, weights, k=SHARD)
    ]
    rows = [encode(case.metadata["prompt"]) for case in cases]
    return collate(rows, [[False] * len(row) for row in rows], [case.scene for case in cases], width)


def caption(scene: Scene) -> str:
    """The answer to "Describe the picture.": the things in reading order of their centres' rows."""
    return enumeration([article(f"{obj.color} {obj.shape}") for obj in reading_order(scene)])


CAPTION_REQUESTS = (
    "Describe the picture.",
    "Describe this image.",
    "Describe the scene.",
    "Describe what you see.",
    "Write a caption for this picture.",
)


def conversation(scene: Scene, rng: Random) -> list[tuple[str, str]]:
    """One to four questions about a scene and their answers, now and then a description among them."""
    turns = []
    for _ in range(rng.randint(1, MAX_QUESTIONS)):
        if rng.random() < 0.08:
            turns.append((rng.choice(CAPTION_REQUESTS), caption(scene)))
        else:
            question = sample_question(scene, rng)
            turns.append((question.text, question.answer))
    return turns


def question_shard(
    seed: int, encode_turns: Callable[[list[tuple[str, str]]], tuple[list[int], list[bool]]], width: int
) -> Arrays:
    """Conversations about scenes; half of the scenes are those of sentences, half have things of any kind."""
    rng = Random(seed)
    rows, learn, scenes = [], [], []
    for index in range(SHARD):
        scene = sample_scene(rng) if index % 2 else sample_case(rng.choice((*KINDS, "mixed")), rng).scene
        turns = conversation(scene, rng)
        ids, marks = encode_turns(turns)
        while len(ids) > width:
            turns.pop()
            ids, marks = encode_turns(turns)
        rows.append(ids)
        learn.append(marks)
        scenes.append(scene)
    return collate(rows, learn, scenes, width)


def build(shard: Callable[[int], Arrays], shards: int, seed: int, workers: int) -> Arrays:
    """`shards` shards made in parallel, concatenated; shard i is made from `seed + i`, whoever makes it."""
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        parts = list(pool.map(shard, range(seed, seed + shards)))
    return {
        name: value if value.ndim == 0 else np.concatenate([part[name] for part in parts])
        for name, value in parts[0].items()
    }


def save_examples(path: Path, **groups: Arrays) -> None:
    """Write named groups of arrays to one compressed file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        named = {f"{g}.{k}": v for g, arrays in groups.items() for k, v in arrays.items()}
        np.savez_compressed(file, **named)  # pyright: ignore[reportArgumentType]
    os.replace(partial, path)


def load_examples(path: Path, group: str) -> Examples:
    """One group of `save_examples`, as tensors."""
    with np.load(path) as file:
        arrays = {
            k.removeprefix(f"{group}."): torch.from_numpy(file[k]) for k in file if k.startswith(f"{group}.")
        }
    ids, lengths, learn = (arrays.pop(name) for name in ("ids", "lengths", "learn"))
    return Examples(ids, lengths.long(), learn, {**arrays, "place": arrays["place"].float()})
