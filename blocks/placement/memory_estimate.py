"""Numbers of parameters and memory estimates, from a model's architecture alone.

Cache sizes are exact. Activations are rough: what the largest layer holds at once, without fragmentation and
the kernels' workspaces.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from ..checkpoints.key_mapping import saved_tensors
from ..checkpoints.quantize import quantizable_weights
from ..kernels.codec import CODE_DTYPES, scale_dtype, scales_per_output
from ..model.context import DecoderConfig
from ..model.kv_cache import KVCache
from ..model.siglip import SiglipConfig

PROMPT_TOKENS = 128
"""Text tokens that estimates assume for a prompt or a question with its template."""

# Approximate float32 numbers that sampling holds per row and vocabulary entry: logits, their sorted copy with
# int64 indices, probabilities, and the int64 words of the noise.
_SAMPLING = 16


@dataclass(frozen=True)
class Workload:
    """Memory of one item of a batch, not counting weights, in numbers of the model's dtype.

    rows: rows of the cache.
    positions: length of the cache.
    cache: keys and values.
    activations: activations at the peak of a forward call.
    sampling: float32 numbers while sampling.
    once: activations of a stage that runs before or after and does not grow with the batch; the larger of the
        two stages is the peak.
    """

    name: str
    rows: int
    positions: int
    cache: int
    activations: int
    sampling: int
    once: int

    def cache_bytes(self, batch: int, dtype: torch.dtype) -> int:
        """Bytes of keys and values of `batch` items (exact)."""
        return batch * self.cache * dtype.itemsize

    def activation_bytes(self, batch: int, dtype: torch.dtype) -> int:
        """Bytes alive at the peak for `batch` items (rough), without the caches."""
        step = batch * max(self.activations * dtype.itemsize, self.sampling * torch.float32.itemsize)
        return max(step, self.once * dtype.itemsize)


def decoder_workload(
    name: str, config: DecoderConfig, vocabulary: int, prompt: int, new: int, *, rows: int = 1, once: int = 0
) -> Workload:
    """The workload of `prompt` positions and `new` generated ones, with `rows` cache rows per item.

    Positions beyond the context are not counted, since such requests are refused.
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
    """Activations per position: the residual, its norm, and the wider of attention and feed-forward."""
    query_dim = config.head_dim
    if config.latent is not None:
        query_dim = config.latent.nope_dim + config.latent.rope_dim
    attention = 4 * config.num_heads * query_dim
    feed_forward = 3 * config.intermediate_size
    if config.moe is not None:
        experts = config.moe.top_k * (config.hidden_size + 3 * config.moe.expert_width)
        feed_forward = max(feed_forward, experts)
    return 2 * config.hidden_size + max(attention, feed_forward)


def siglip_activations(config: SiglipConfig, images: int) -> int:
    """Activations of the vision tower for a batch of this many images or tiles."""
    widest = max(4 * config.width, 2 * int(config.width * config.mlp_ratio))
    return images * config.num_patches * (2 * config.width + widest)


def parameters_by_part(model: nn.Module, parts: Mapping[str, str]) -> dict[str, int]:
    """Number of parameters in each part of a model, usually on meta.

    `parts` maps labels to patterns. A parameter belongs to the first part whose pattern its name contains;
    each must belong to one.
    """
    counts = dict.fromkeys(parts, 0)
    for name, tensor in saved_tensors(model).items():
        label = next(label for label, pattern in parts.items() if re.search(pattern, name))
        counts[label] += tensor.numel()
    return {label: count for label, count in counts.items() if count}


def active_parameters(config: DecoderConfig, total: int, experts: int) -> int:
    """Parameters that one token uses, of `total` parameters with `experts` in the routed experts."""
    if config.moe is None:
        return total
    return total - experts + experts * config.moe.top_k // config.moe.num_experts


def quantized_bytes(shape: tuple[int, ...], kind: str) -> int:
    """Bytes of a quantized weight of that shape."""
    count, inputs = prod(shape), shape[-1]
    scales = count // inputs * (scales_per_output(kind, inputs) or 1) * scale_dtype(kind).itemsize
    return count // 2 + 2 * scales if kind == "int4" else count * CODE_DTYPES[kind].itemsize + scales


def tensor_bytes(
    model: nn.Module, dtype: torch.dtype, kind: str | None, keep_float32: Callable[[str], bool]
) -> dict[str, int]:
    """Bytes of each of a plain model's tensors once loaded in `dtype` and quantized to `kind`."""
    quantized = {} if kind is None else quantizable_weights(model)
    sizes = {}
    for name, tensor in saved_tensors(model).items():
        if name in quantized and kind is not None:
            sizes[name] = quantized_bytes(quantized[name][1], kind)
        else:
            sizes[name] = tensor.numel() * (torch.float32 if keep_float32(name) else dtype).itemsize
    return sizes


def model_bytes(
    model: nn.Module, dtype: torch.dtype, kind: str | None, keep_float32: Callable[[str], bool]
) -> int:
    """The sum of `tensor_bytes`."""
    return sum(tensor_bytes(model, dtype, kind, keep_float32).values())
