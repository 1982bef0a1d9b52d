"""Training examples of the synthetic world: token ids with packed scenes, generated on all CPU cores."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import numpy as np

from ...learn.packed import Arrays, EncodeTurns, Turns, encode_to_fit, pack_rows
from ..world.questions import sample_question
from ..world.renderer import pack
from ..world.scene import Scene, has_held_out_relation, place_in_quadrants, reading_order, sample_scene
from ..world.sentences import KINDS, Case, sample_case
from ..world.wording import article, enumeration
from .things_tokenizer import CAPTION_REQUESTS

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


def pack_scenes(scenes: Sequence[Scene]) -> Arrays:
    """Packed square scenes in compact dtypes, a row for each; `pictures.draw_pixels` draws them."""
    packed = {name: value.numpy() for name, value in pack(scenes).items() if value.ndim}
    # Multiples of 1/32 are exact in half precision.
    packed["place"] = packed["place"].astype(np.float16)
    return packed


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
    nothing = [[False] * len(row) for row in rows]
    return {**pack_rows(rows, nothing, width), **pack_scenes([case.scene for case in cases])}


def caption(scene: Scene) -> str:
    """The answer to "Describe the picture.": the objects in reading order."""
    return enumeration([article(f"{obj.color} {obj.shape}") for obj in reading_order(scene)])


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
    return {**pack_rows(rows, masks, width), **pack_scenes(scenes)}
