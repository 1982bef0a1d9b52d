"""Rotary frequencies that a config stretches beyond the context of pre-training: linear, llama3 and YaRN."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..blocks.errors import ConfigError
from ..blocks.json_config import Section

TYPES = ("default", "linear", "llama3", "yarn")


class Rotary(NamedTuple):
    """Rotary settings of a decoder, as in `DecoderConfig`; `score_factor` is that of `LatentConfig`."""

    theta: float
    frequencies: tuple[float, ...] | None = None
    scale: float = 1.0
    score_factor: float = 1.0


def read_rotary(section: Section, dim: int) -> Rotary:
    """The rotary settings for heads with `dim` rotary dimensions. Raises `ConfigError`.

    They are in `rope_parameters` (since transformers 5), or in `rope_scaling` beside `rope_theta`.
    """
    newer = section.get("rope_parameters")
    rope = section.section("rope_parameters" if newer else "rope_scaling")
    theta = rope.number("rope_theta", section.number("rope_theta", 10000.0))
    kind = rope.name("rope_type", rope.name("type", "default"))
    if kind not in TYPES:
        raise ConfigError(f"{rope.where}.rope_type is {kind!r}; accepted: {', '.join(TYPES)}")
    if kind == "default":
        return Rotary(theta)
    # In float32 throughout, as in the reference: angles of late positions depend on the last bits.
    turns = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    longest = section.integer("max_position_embeddings", 2048)
    before = rope.integer("original_max_position_embeddings", longest)
    factor = rope.number("factor", longest / before)
    scale = score_factor = 1.0
    if kind == "linear":
        turns = turns / factor
    elif kind == "llama3":
        turns = _llama3(rope, turns, factor, before)
    else:
        turns = _yarn(rope, turns, factor, theta, before)
        scale, score_factor = _yarn_scales(rope, factor)
    return Rotary(theta, tuple(turns.tolist()), scale, score_factor)


def _llama3(rope: Section, turns: Tensor, factor: float, before: int) -> Tensor:
    """Llama 3.1's frequencies: those with long waves are divided, those with short ones are kept, and those
    between are mixed by the number of waves in the former context."""
    low, high = rope.number("low_freq_factor", 1.0), rope.number("high_freq_factor", 4.0)
    if low >= high:
        raise ConfigError(
            f"{rope.where}.low_freq_factor is {low:g}; accepted: below high_freq_factor {high:g}"
        )
    waves = 2 * math.pi / turns
    share = (before / waves - low) / (high - low)
    mixed = (1 - share) * turns / factor + share * turns
    mixed = torch.where(waves < before / high, turns, mixed)
    return torch.where(waves > before / low, turns / factor, mixed)


def _yarn(rope: Section, turns: Tensor, factor: float, theta: float, before: int) -> Tensor:
    """YaRN's frequencies (Peng et al. 2023, eq. 17 to 23): a ramp over the dimensions, between those that
    turn `beta_fast` and `beta_slow` times in the former context, leads from kept to divided ones."""
    pairs = len(turns)

    def dimension(rotations: float) -> float:
        if theta <= 1:
            raise ConfigError(f"{rope.where}: rope_theta is {theta:g}; accepted with yarn: above 1")
        return pairs * math.log(before / (rotations * 2 * math.pi)) / math.log(theta)

    low, high = dimension(rope.number("beta_fast", 32.0)), dimension(rope.number("beta_slow", 1.0))
    if rope.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    ramp = (torch.arange(pairs, dtype=torch.float32, device="cpu") - low) / (
        high - low if high != low else 0.001
    )
    share = 1 - ramp.clamp(0, 1)
    return 1.0 / (factor * (1.0 / turns)) * (1 - share) + turns * share


def _yarn_scales(rope: Section, factor: float) -> tuple[float, float]:
    """What cosines and sines are multiplied by, and, where latent attention is used, scores."""

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    both = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    scale = magnitude(both[0]) / magnitude(both[1]) if all(both) else magnitude(1.0)
    return rope.number("attention_factor", scale), magnitude(both[1]) ** 2
