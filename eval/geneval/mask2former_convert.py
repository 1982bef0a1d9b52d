"""The official detector's mmdet checkpoint as transformers' Mask2Former.

GenEval's detector is mmdet 2.x's `mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco`. transformers has the same
network under other names, which `RENAMES` maps. Beyond names, fused query, key and value projections are
split, and the channel order of Swin's patch merging is converted.
"""

import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...blocks.errors import BifronsError, CheckpointError

CHECKPOINT = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.pth"
SHA256_START = "743b7d99015f1224"

_SWIN = "model.pixel_level_module.encoder."
_BLOCK = f"{_SWIN}encoder.layers.#.blocks.#."
_PIXEL = "model.pixel_level_module.decoder."
_DECODER = "model.transformer_module.decoder."

# mmdet's module or parameter -> transformers' in its published files; # is a number. A suffix (".weight",
# ".bias" or none) stays. Three names split a fused projection into query, key and value.
RENAMES: tuple[tuple[str, str | tuple[str, str, str]], ...] = (
    ("backbone.patch_embed.projection", f"{_SWIN}embeddings.patch_embeddings.projection"),
    ("backbone.patch_embed.norm", f"{_SWIN}embeddings.norm"),
    ("backbone.stages.#.blocks.#.norm1", f"{_BLOCK}layernorm_before"),
    (
        "backbone.stages.#.blocks.#.attn.w_msa.relative_position_bias_table",
        f"{_BLOCK}attention.self.relative_position_bias_table",
    ),
    (
        "backbone.stages.#.blocks.#.attn.w_msa.qkv",
        (f"{_BLOCK}attention.self.query", f"{_BLOCK}attention.self.key", f"{_BLOCK}attention.self.value"),
    ),
    ("backbone.stages.#.blocks.#.attn.w_msa.proj", f"{_BLOCK}attention.output.dense"),
    ("backbone.stages.#.blocks.#.norm2", f"{_BLOCK}layernorm_after"),
    ("backbone.stages.#.blocks.#.ffn.layers.0.0", f"{_BLOCK}intermediate.dense"),
    ("backbone.stages.#.blocks.#.ffn.layers.1", f"{_BLOCK}output.dense"),
    ("backbone.stages.#.downsample.norm", f"{_SWIN}encoder.layers.#.downsample.norm"),
    ("backbone.stages.#.downsample.reduction", f"{_SWIN}encoder.layers.#.downsample.reduction"),
    ("backbone.norm0", f"{_SWIN}hidden_states_norms.stage1"),
    ("backbone.norm1", f"{_SWIN}hidden_states_norms.stage2"),
    ("backbone.norm2", f"{_SWIN}hidden_states_norms.stage3"),
    ("backbone.norm3", f"{_SWIN}hidden_states_norms.stage4"),
    ("panoptic_head.pixel_decoder.input_convs.#.conv", f"{_PIXEL}input_projections.#.0"),
    ("panoptic_head.pixel_decoder.input_convs.#.gn", f"{_PIXEL}input_projections.#.1"),
    ("panoptic_head.pixel_decoder.level_encoding.weight", f"{_PIXEL}level_embed"),
    (
        "panoptic_head.pixel_decoder.encoder.layers.#.attentions.0.sampling_offsets",
        f"{_PIXEL}encoder.layers.#.self_attn.sampling_offsets",
    ),
    (
        "panoptic_head.pixel_decoder.encoder.layers.#.attentions.0.attention_weights",
        f"{_PIXEL}encoder.layers.#.self_attn.attention_weights",
    ),
    (
        "panoptic_head.pixel_decoder.encoder.layers.#.attentions.0.value_proj",
        f"{_PIXEL}encoder.layers.#.self_attn.value_proj",
    ),
    (
        "panoptic_head.pixel_decoder.encoder.layers.#.attentions.0.output_proj",
        f"{_PIXEL}encoder.layers.#.self_attn.output_proj",
    ),
    (
        "panoptic_head.pixel_decoder.encoder.layers.#.norms.0",
        f"{_PIXEL}encoder.layers.#.self_attn_layer_norm",
    ),
    ("panoptic_head.pixel_decoder.encoder.layers.#.ffns.0.layers.0.0", f"{_PIXEL}encoder.layers.#.fc1"),
    ("panoptic_head.pixel_decoder.encoder.layers.#.ffns.0.layers.1", f"{_PIXEL}encoder.layers.#.fc2"),
    ("panoptic_head.pixel_decoder.encoder.layers.#.norms.1", f"{_PIXEL}encoder.layers.#.final_layer_norm"),
    ("panoptic_head.pixel_decoder.lateral_convs.0.conv", f"{_PIXEL}adapter_1.0"),
    ("panoptic_head.pixel_decoder.lateral_convs.0.gn", f"{_PIXEL}adapter_1.1"),
    ("panoptic_head.pixel_decoder.output_convs.0.conv", f"{_PIXEL}layer_1.0"),
    ("panoptic_head.pixel_decoder.output_convs.0.gn", f"{_PIXEL}layer_1.1"),
    ("panoptic_head.pixel_decoder.mask_feature", f"{_PIXEL}mask_projection"),
    (
        "panoptic_head.transformer_decoder.layers.#.attentions.0.attn.in_proj_weight",
        f"{_DECODER}layers.#.cross_attn.in_proj_weight",
    ),
    (
        "panoptic_head.transformer_decoder.layers.#.attentions.0.attn.in_proj_bias",
        f"{_DECODER}layers.#.cross_attn.in_proj_bias",
    ),
    (
        "panoptic_head.transformer_decoder.layers.#.attentions.0.attn.out_proj",
        f"{_DECODER}layers.#.cross_attn.out_proj",
    ),
    ("panoptic_head.transformer_decoder.layers.#.norms.0", f"{_DECODER}layers.#.cross_attn_layer_norm"),
    (
        "panoptic_head.transformer_decoder.layers.#.attentions.1.attn.in_proj_weight",
        (
            f"{_DECODER}layers.#.self_attn.q_proj.weight",
            f"{_DECODER}layers.#.self_attn.k_proj.weight",
            f"{_DECODER}layers.#.self_attn.v_proj.weight",
        ),
    ),
    (
        "panoptic_head.transformer_decoder.layers.#.attentions.1.attn.in_proj_bias",
        (
            f"{_DECODER}layers.#.self_attn.q_proj.bias",
            f"{_DECODER}layers.#.self_attn.k_proj.bias",
            f"{_DECODER}layers.#.self_attn.v_proj.bias",
        ),
    ),
    (
        "panoptic_head.transformer_decoder.layers.#.attentions.1.attn.out_proj",
        f"{_DECODER}layers.#.self_attn.out_proj",
    ),
    ("panoptic_head.transformer_decoder.layers.#.norms.1", f"{_DECODER}layers.#.self_attn_layer_norm"),
    ("panoptic_head.transformer_decoder.layers.#.ffns.0.layers.0.0", f"{_DECODER}layers.#.fc1"),
    ("panoptic_head.transformer_decoder.layers.#.ffns.0.layers.1", f"{_DECODER}layers.#.fc2"),
    ("panoptic_head.transformer_decoder.layers.#.norms.2", f"{_DECODER}layers.#.final_layer_norm"),
    ("panoptic_head.transformer_decoder.post_norm", f"{_DECODER}layernorm"),
    ("panoptic_head.query_embed", "model.transformer_module.queries_embedder"),
    ("panoptic_head.query_feat", "model.transformer_module.queries_features"),
    ("panoptic_head.level_embed", "model.transformer_module.level_embed"),
    ("panoptic_head.cls_embed", "class_predictor"),
    ("panoptic_head.mask_embed.0", f"{_DECODER}mask_predictor.mask_embedder.0.0"),
    ("panoptic_head.mask_embed.2", f"{_DECODER}mask_predictor.mask_embedder.1.0"),
    ("panoptic_head.mask_embed.4", f"{_DECODER}mask_predictor.mask_embedder.2.0"),
)

# An index table that follows from the window size; transformers computes it.
_DERIVED = re.compile(r"backbone\.stages\.\d+\.blocks\.\d+\.attn\.w_msa\.relative_position_index")
_MERGING = re.compile(r"backbone\.stages\.\d+\.downsample\.(norm|reduction)\.")
_PATTERNS = [
    (re.compile(re.escape(old).replace(r"\#", r"(\d+)") + r"((?:\.weight|\.bias)?)"), new)
    for old, new in RENAMES
]


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mmdet's tensors under transformers' names, split and reordered as needed.

    Raises CheckpointError for a name that the table lacks. Loading checks completeness and shapes.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if _DERIVED.fullmatch(name):
            continue
        if _MERGING.match(name):
            tensor = undo_merging_order(tensor)
        new = _new_names(name)
        if len(new) == 1:
            out[new[0]] = tensor
        else:
            out.update(zip(new, (part.contiguous() for part in tensor.chunk(3)), strict=True))
    return out


def _new_names(name: str) -> tuple[str, ...]:
    for pattern, new in _PATTERNS:
        if match := pattern.fullmatch(name):
            *numbers, suffix = match.groups()
            targets = (new,) if isinstance(new, str) else new
            return tuple(_fill(target, numbers) + suffix for target in targets)
    raise CheckpointError(
        f"the detector's checkpoint has the tensor {name!r}; accepted: {CHECKPOINT}'s names"
    )


def _fill(target: str, numbers: list[str]) -> str:
    for number in numbers:
        target = target.replace("#", number, 1)
    return target


def undo_merging_order(tensor: Tensor) -> Tensor:
    """Reorder the last dimension, 4 C, of a patch merging's `norm` or `reduction`.

    mmdet gathers the four neighbours with `nn.Unfold`: channel-major, row by row (00, 01, 10, 11). Swin and
    transformers concatenate the neighbours' channels column by column (00, 10, 01, 11).
    """
    *lead, last = tensor.shape
    by_channel = tensor.reshape(*lead, last // 4, 4)
    return by_channel[..., [0, 2, 1, 3]].transpose(-1, -2).reshape(*lead, last).contiguous()


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of an mmdet `.pth`, read without running code. Raises CheckpointError for anything else."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} can't be read as a checkpoint of plain tensors: {reason}") from error
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} has no 'state_dict' of tensors; accepted: {CHECKPOINT}")
    return dict(state)


def check_sha256(path: Path) -> str:
    """The file's sha256 in hex. Raises CheckpointError unless it is the official checkpoint's."""
    digest = sha256(path)
    if not digest.startswith(SHA256_START):
        raise CheckpointError(
            f"{path} has sha256 {digest[:16]}...; accepted: {CHECKPOINT}, whose sha256 begins {SHA256_START}"
        )
    return digest


def sha256(path: Path) -> str:
    """A file's sha256 in hex. Raises BifronsError when it can't be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BifronsError(f"{path} can't be read: {error.strerror}") from error
