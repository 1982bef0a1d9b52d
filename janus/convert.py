"""Translates a Janus folder from transformers' format to the original, for `blocks/conversion/convert.py`."""

import os
from pathlib import Path
from typing import Any

import torch

from ..blocks.checkpoints.formats import TensorEntry
from ..blocks.checkpoints.reader import TensorReader
from ..blocks.conversion.quantized_writer import merged_specs
from ..blocks.conversion.writer import TensorSpec
from ..blocks.json_config import names_token
from ..blocks.model.siglip import SiglipConfig
from ..blocks.picture_settings import read_picture_settings
from ..tokenizers.vq.config import VQConfig
from .config import JanusConfig, read_config
from .model import JanusModel
from .prompts import IMAGE_TOKEN
from .weight_names import pick_key_map


def to_original(
    src: Path, entries: dict[str, TensorEntry], reader: TensorReader
) -> tuple[list[TensorSpec], dict[str, dict[str, Any]]]:
    """The tensors under official names (q, k and v fused), and the JSON files of the original format.

    Raises `CheckpointError` if the tensors do not match the config.
    """
    config, model_type = read_config(src)
    with torch.device("meta"):
        network = JanusModel(config)
    key_map = pick_key_map(entries, model_type, config.tied)
    specs = list(merged_specs(network, src, entries, key_map, reader))
    dtype = next(dtype for name, _, _, dtype in specs if name == "language_model.model.embed_tokens.weight")
    return specs, original_files(src, config, str(dtype).removeprefix("torch."))


def original_files(src: Path, config: JanusConfig, dtype: str) -> dict[str, dict[str, Any]]:
    """The JSON files of the original format for a folder in transformers' format."""
    return {
        "config.json": original_config(config, dtype),
        "processor_config.json": _processor_config(src, config),
        "preprocessor_config.json": _preprocessor_config(src, config),
    }


def original_config(config: JanusConfig, dtype: str) -> dict[str, Any]:
    """`config.json` in the official schema, which `read_config` reads back as the same architecture.

    The exception is `tied`, since the official format always stores the head. Sizes that only small models
    change are written where they differ from the official ones.
    """
    vision, vq, llm = config.vision, config.vq, config.decoder
    language = {
        "hidden_size": llm.hidden_size,
        "intermediate_size": llm.intermediate_size,
        "max_position_embeddings": llm.max_positions,
        "model_type": "llama",
        "num_attention_heads": llm.num_heads,
        "num_hidden_layers": llm.num_layers,
        "num_key_value_heads": llm.num_kv_heads,
        "torch_dtype": dtype,
        "vocab_size": llm.vocab_size,
    }
    unusual = {"head_dim": (llm.head_dim, llm.hidden_size // llm.num_heads)}
    unusual |= {"rms_norm_eps": (llm.rms_norm_eps, 1e-6), "rope_theta": (llm.rope_theta, 10000.0)}
    language |= {name: value for name, (value, usual) in unusual.items() if value != usual}
    head = {"image_token_embed": config.gen_head_width, "image_token_size": vq.codebook_size}
    return {
        "aligner_config": _projector("aligner", config.aligner_depth, vision.width, llm.hidden_size),
        "architectures": ["MultiModalityCausalLM"],
        "gen_aligner_config": _projector(
            "gen_aligner", config.gen_aligner_depth, vq.code_dim, llm.hidden_size
        ),
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": head | {"n_embed": llm.hidden_size},
        },
        "gen_vision_config": {"cls": "VQ-16", "model_type": "gen_vision", "params": _vq_params(vq)},
        "language_config": language,
        "model_type": "multi_modality",
        "torch_dtype": dtype,
        "vision_config": {"cls": "CLIPVisionTower", "model_type": "vision", "params": _vision_params(vision)},
    }


def _projector(kind: str, depth: int, width_in: int, width_out: int) -> dict[str, Any]:
    params = {"depth": depth, "input_dim": width_in, "n_embed": width_out, "projector_type": "mlp_gelu"}
    return {"cls": "MlpProjector", "model_type": kind, "params": params}


def _vision_params(vision: SiglipConfig) -> dict[str, Any]:
    sizes = {name: getattr(vision, name) for name in ("width", "layers", "heads", "patch_size", "mlp_ratio")}
    official = all(getattr(SiglipConfig(), name) == value for name, value in sizes.items())
    name = f"siglip_width{vision.width}_patch{vision.patch_size}_{vision.image_size}"
    return {
        "image_size": vision.image_size,
        "model_name": "siglip_large_patch16_384" if official else name,
        "select_feature": "same",
        "select_layer": -1,
    } | ({} if official else sizes)


def _vq_params(vq: VQConfig) -> dict[str, Any]:
    names = ("ch", "ch_mult", "z_channels", "num_res_blocks", "norm_groups", "patch_width")
    sizes, official = ({name: getattr(one, name) for name in names} for one in (vq, VQConfig()))
    sizes = {} if sizes == official else sizes | {"ch_mult": list(vq.ch_mult)}
    return {"image_token_size": vq.codebook_size, "n_embed": vq.code_dim} | sizes


def _processor_config(src: Path, config: JanusConfig) -> dict[str, Any]:
    """The official settings; Janus-1.3B's role names if the tokenizer lacks the token `<|User|>`."""
    settings, tokenizer = read_picture_settings(src), src / "tokenizer.json"
    old = os.path.isfile(tokenizer) and not names_token(tokenizer, "<|User|>")
    return {
        "add_special_token": False,
        "ignore_id": -100,
        "image_tag": settings.token("image_tag", settings.token("image_token", IMAGE_TOKEN)),
        "mask_prompt": True,
        "num_image_tokens": config.vision.num_patches,
        "processor_class": "VLChatProcessor",
        "sft_format": "deepseek_old" if old else "deepseek",
    }


def _preprocessor_config(src: Path, config: JanusConfig) -> dict[str, Any]:
    """The official settings, overridden by the source's."""
    stored = read_picture_settings(src).values
    result = {
        "background_color": [127, 127, 127],
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "VLMImageProcessor",
        "image_size": config.vision.image_size,
        "image_std": [0.5, 0.5, 0.5],
        "min_size": 14,
        "processor_class": "VLChatProcessor",
        "rescale_factor": 0.00392156862745098,
    }
    names = ("background_color", "image_mean", "image_std", "min_size", "rescale_factor")
    return result | {name: stored[name] for name in names if stored.get(name) is not None}
