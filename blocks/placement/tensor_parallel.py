"""Tensor parallel (Shoeybi et al. 2019, "Megatron-LM", sec. 3): each of N ranks holds 1/N of every decoder
layer.

Queries, keys and values, gate and up projections are divided by outputs (heads, width of the feed-forward),
the projections after them by inputs, so that a layer's two outputs are sums over the ranks. Every expert is
divided by its width like a feed-forward: all ranks work whatever experts the router selects. Norms, routers
and the latent projection are the same on all ranks. The first rank alone has embeddings, heads and vision.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..checkpoints.formats import TensorEntry
from ..checkpoints.key_mapping import KeyMap, ParameterSlice
from ..checkpoints.loader import load_weights
from ..checkpoints.quantize import decoder_name
from ..errors import OptionError, check_integer
from ..kernels.codec import FP8_BLOCK
from ..model.context import DecoderConfig
from ..model.decoder import Decoder

MAX_RANKS = 64
_BY_OUTPUTS = ("q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj", "gate_proj", "up_proj")
_BY_INPUTS = ("o_proj", "down_proj")
_BIASES = ("q_bias", "k_bias", "v_bias")
Config = TypeVar("Config", bound=Any)
Pieces = Mapping[str, tuple[TensorEntry, tuple[ParameterSlice, ...]]]
"""Tensors of a checkpoint, and the slices of a decoder's parameters that they fill."""
Load = Callable[[Decoder, int, torch.device, torch.dtype], object]
"""Fills the decoder, on meta, of the rank of this number."""


def check_ranks(ranks: object, device: torch.device) -> int:
    """The number of ranks, checked: one GPU each, or any number of processes on the CPU. Raises
    `OptionError`."""
    count = check_integer("tensor_parallel", ranks, 2, MAX_RANKS)
    if device.type == "cpu":
        return count
    if device.type != "cuda":
        raise OptionError(f"tensor_parallel is {count}, but the device is {device}; accepted: cuda, cpu")
    there = torch.cuda.device_count()
    if count > there:
        raise OptionError(
            f"tensor_parallel is {count}, but this machine has {there} CUDA GPUs; accepted: up to {there}"
        )
    if (torch.cuda.current_device() if device.index is None else device.index) != 0:
        raise OptionError(f"tensor_parallel takes the GPUs from 0 on; device is {device}; accepted: cuda")
    return count


def split_decoder(config: DecoderConfig, ranks: int) -> DecoderConfig:
    """The architecture of one rank's share of a decoder. Raises `OptionError` for what can't be divided."""
    sizes = {"attention heads": config.num_heads, "inputs of the feed-forward": config.intermediate_size}
    if config.latent is None:
        sizes["key/value heads"] = config.num_kv_heads
    if config.moe is not None:
        sizes["inputs of an expert"] = config.moe.expert_width
    for what, size in sizes.items():
        if size % ranks:
            raise OptionError(
                f"tensor_parallel is {ranks}, but the model has {size} {what}; accepted: a divisor of "
                + " and ".join(f"{size} ({what})" for what, size in sizes.items())
            )
    moe = None if config.moe is None else replace(config.moe, expert_width=config.moe.expert_width // ranks)
    kv_heads = config.num_kv_heads if config.latent is not None else config.num_kv_heads // ranks
    return replace(
        config,
        num_heads=config.num_heads // ranks,
        num_kv_heads=kv_heads,
        intermediate_size=config.intermediate_size // ranks,
        moe=moe,
    )


def split_config(config: Config, ranks: int | None) -> Config:
    """A model's config with the decoder of one rank; None or 1 leaves it whole. Raises `OptionError`."""
    if ranks is None or check_integer("tensor_parallel", ranks, 1, MAX_RANKS) == 1:
        return config
    return replace(config, decoder=split_decoder(config.decoder, ranks))


def split_dimension(parameter: str) -> int | None:
    """The dimension along which the tensors of a decoder layer's parameter are divided; None for none."""
    *_, module, leaf = parameter.rsplit(".", 2)
    if leaf in _BIASES or module in _BY_OUTPUTS or (module, leaf) == ("experts", "gate_up"):
        return 0
    return 1 if module in _BY_INPUTS or (module, leaf) == ("experts", "down") else None


def slice_of(entry: TensorEntry, dimension: int, rank: int, ranks: int) -> TensorEntry:
    """The part of a stored tensor that a rank reads: rows alone, or rows' parts and what lies between them.
    Raises `OptionError` for weights in blocks of fp8 that it would cut."""
    count, scale = entry.shape[dimension] // ranks, entry.scale
    if scale is not None and entry.dtype != torch.int8 and count % FP8_BLOCK:
        raise OptionError(
            f"tensor_parallel is {ranks}, which would cut the blocks of fp8 of {entry.name}; accepted: what "
            f"leaves each rank a multiple of {FP8_BLOCK} of {entry.shape[dimension]}"
        )
    if scale is not None and dimension < len(scale.shape):
        scale = slice_of(scale, dimension, rank, ranks)
    strides = entry.strides or _contiguous(entry.shape)
    shape = (*entry.shape[:dimension], count, *entry.shape[dimension + 1 :])
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return replace(
        entry,
        shape=shape,
        offset=entry.offset + rank * count * strides[dimension] * entry.dtype.itemsize,
        nbytes=span * entry.dtype.itemsize,
        strides=None if strides == _contiguous(shape) else strides,
        scale=scale,
    )


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def targets_of(key_map: KeyMap, name: str) -> tuple[ParameterSlice, ...]:
    """The slices that a tensor fills; none for an unknown one, which loading refuses by itself."""
    try:
        targets = key_map(name)
    except KeyError:
        return ()
    return targets if isinstance(targets, tuple) else (() if targets is None else (targets,))


def rank_entries(
    model: nn.Module, entries: Mapping[str, TensorEntry], key_map: KeyMap, rank: int, ranks: int
) -> dict[str, TensorEntry]:
    """The tensors of a checkpoint, those of the decoder's layers as the rank reads them."""
    layers, found = f"{decoder_name(model)}.layers.".lstrip("."), dict(entries)
    for name, entry in entries.items():
        for target in targets_of(key_map, name):
            if target.param.startswith(layers):
                dimension = split_dimension(target.param)
                # One of another size stays whole, and is refused by its shape.
                if dimension is not None and not (entry.shape[dimension:] or (1,))[0] % ranks:
                    found[name] = slice_of(entry, dimension, rank, ranks)
    return found


def decoder_pieces(model: nn.Module, entries: Mapping[str, TensorEntry], key_map: KeyMap) -> Pieces:
    """The tensors of the layers and the last norm of a model's decoder, by the decoder's own names."""
    path = f"{decoder_name(model)}."
    pieces = {}
    for name, entry in entries.items():
        found = [
            replace(target, param=target.param.removeprefix(path))
            for target in targets_of(key_map, name)
            if target.param.startswith((f"{path}layers.", f"{path}norm."))
        ]
        if found:
            pieces[name] = entry, tuple(found)
    return pieces


def load_pieces(
    folder: Path,
    pieces: Pieces,
    keep_float32: Callable[[str], bool],
    ranks: int,
    decoder: Decoder,
    rank: int,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Fill a rank's decoder, which has no embeddings, from its slices of a checkpoint."""

    def key_map(name: str) -> tuple[ParameterSlice, ...]:
        return pieces[name][1]

    entries = {name: entry for name, (entry, _) in pieces.items()}
    load_weights(
        decoder,
        folder,
        key_map,
        device=device,
        dtype=dtype,
        progress=False,
        keep_float32=keep_float32,
        entries=rank_entries(decoder, entries, key_map, rank, ranks),
    )
