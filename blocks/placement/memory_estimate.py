"""How large a model is and what work on it takes, from its architecture alone: nothing is loaded.

Caches are exact. Activations are rough: what the largest layer holds at once, without the allocator's own
losses and the kernels' work space.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..checkpoints.key_mapping import saved_tensors
from ..model.context import DecoderConfig
from ..model.kv_cache import KVCache
from ..model.siglip import SiglipConfig

PROMPT_TOKENS = 128
"""Tokens of text that estimates count for a prompt or a question with its template."""

# Sampling a row holds, per entry of the vocabulary, about this many float32 numbers' worth: logits, their
# sorted copy with int64 places, probabilities, and the int64 words of the noise.
_SAMPLING = 16


@dataclass(frozen=True)
class Workload:
    """What one item of a batch takes beside the weights. Counts are numbers in the model's dtype, but
    `sampling`, which counts float32 numbers. `once` does not grow with the batch; it comes before or after
    the rest, so that the larger of both is the peak."""

    name: str
    rows: int
    positions: int
    cache: int
    activations: int
    sampling: int
    once: int

    def cache_bytes(self, batch: int, dtype: torch.dtype) -> int:
        """Keys and values of `batch` items: exact."""
        return batch * self.cache * dtype.itemsize

    def activation_bytes(self, batch: int, dtype: torch.dtype) -> int:
        """Roughly what is alive at the peak for `batch` items, caches apart."""
        step = batch * max(self.activations * dtype.itemsize, self.sampling * torch.float32.itemsize)
        return max(step, self.once * dtype.itemsize)


def decoder_workload(
    name: str, config: DecoderConfig, vocabulary: int, prompt: int, new: int, *, rows: int = 1, once: int = 0
) -> Workload:
    """The work of reading `prompt` positions and writing `new` ones, with `rows` rows of the cache an item.

    Positions beyond the context are cut off, as no such work is accepted.
    """
    positions = min(prompt + new, config.max_positions)
    return Workload(
        name=name,
        rows=rows,
        positions=positions,
        cache=rows * KVCache.row_bytes(positions, config.num_layers, config.cache_widths, torch.uint8),
        activations=rows * min(prompt, positions) * _decoder_width(config),
        sampling=rows * vocabulary * _SAMPLING,
        once=once,
    )


def _decoder_width(config: DecoderConfig) -> int:
    """Numbers alive per position: the residual and its norm with the wider of attention and feed-forward."""
    query_dim = config.head_dim
    if config.latent is not None:
        query_dim = config.latent.nope_dim + config.latent.rope_dim
    attention = 4 * config.num_heads * query_dim
    feed_forward = 3 * config.intermediate_size
    if config.moe is not None:
        experts = config.moe.top_k * (config.hidden_size + 3 * config.moe.expert_width)
        feed_forward = max(feed_forward, experts)
    return 2 * config.hidden_size + max(attention, feed_forward)


def siglip_activations(config: SiglipConfig, pictures: int) -> int:
    """Numbers alive while the tower reads so many pictures (or tiles) at once."""
    widest = max(4 * config.width, 2 * int(config.width * config.mlp_ratio))
    return pictures * config.num_patches * (2 * config.width + widest)


def parameters_by_part(model: nn.Module, parts: Mapping[str, str]) -> dict[str, int]:
    """Parameters per part of a model (usually on meta); `parts` maps a label to a pattern that is searched in
    the name, and the first that matches counts. Every parameter belongs to a part."""
    counts = dict.fromkeys(parts, 0)
    for name, tensor in saved_tensors(model).items():
        label = next(label for label, pattern in parts.items() if re.search(pattern, name))
        counts[label] += tensor.numel()
    return {label: count for label, count in counts.items() if count}


def active_parameters(config: DecoderConfig, total: int, experts: int) -> int:
    """Parameters that one token goes through, of `total` with `experts` in the routed experts."""
    if config.moe is None:
        return total
    return total - experts + experts * config.moe.top_k // config.moe.num_experts
