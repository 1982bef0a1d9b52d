"""What `vl2-nano` is: its configs in the official schema with the extension for small towers."""

from typing import Any

from ...blocks.model.siglip import SiglipConfig
from ...vl2.tiles import candidate_resolutions

TILE, MAX_TILES = 96, 4
"""Side of a tile in pixels, and the most local tiles of a picture."""
VIEWS = 1 + MAX_TILES
"""Tiles that are kept for a picture, the whole one first; those that it does not have are gray."""

SPECIAL_TOKENS = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    "<image>",
    "<|ref|>",
    "<|/ref|>",
    "<|det|>",
    "<|/det|>",
    "<|grounding|>",
    "<|User|>",
    "<|Assistant|>",
)
"""Of DeepSeek-VL2's tokenizer and processor; ids follow the learned vocabulary."""

HIDDEN, VISION_WIDTH = 384, 192
MAX_POSITIONS = 2048
"""The most tokens of a conversation."""


def tower_config() -> SiglipConfig:
    """The vision tower: tiles of 96 pixels in patches of 8."""
    return SiglipConfig(
        image_size=TILE, patch_size=8, width=VISION_WIDTH, layers=6, heads=4, mlp_ratio=4.0, gelu_tanh=True
    )


def _language_config(vocab_size: int) -> dict[str, Any]:
    return {
        "bos_token_id": vocab_size - len(SPECIAL_TOKENS),
        "eos_token_id": vocab_size - len(SPECIAL_TOKENS) + 1,
        "first_k_dense_replace": 1,
        "hidden_size": HIDDEN,
        "intermediate_size": 1024,
        "kv_lora_rank": 96,
        "max_position_embeddings": MAX_POSITIONS,
        "model_type": "deepseek_v2",
        "moe_intermediate_size": 256,
        "n_group": 1,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_attention_heads": 6,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 7,
        "num_key_value_heads": 6,
        "q_lora_rank": None,
        "qk_nope_head_dim": 48,
        "qk_rope_head_dim": 16,
        "scoring_func": "softmax",
        "topk_group": 1,
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "torch_dtype": "bfloat16",
        "use_mla": True,
        "v_head_dim": 64,
        "vocab_size": vocab_size,
    }


def _candidates(tower: SiglipConfig, max_tiles: int) -> list[list[int]]:
    return [list(size) for size in candidate_resolutions(max_tiles, tower.image_size)]


def official_config(tower: SiglipConfig, max_tiles: int, language: dict[str, Any]) -> dict[str, Any]:
    """`config.json` of a small DeepSeek-VL2 with this vision tower, up to so many local tiles a picture, and
    this `language_config`."""
    return {
        "architectures": ["DeepseekVLV2ForCausalLM"],
        "model_type": "deepseek_vl_v2",
        "torch_dtype": "bfloat16",
        "tile_tag": "2D",
        "global_view_pos": "head",
        "candidate_resolutions": _candidates(tower, max_tiles),
        "vision_config": {
            "model_type": "vision",
            "model_name": f"siglip_nano_patch{tower.patch_size}_{tower.image_size}",
            "image_size": tower.image_size,
            "patch_size": tower.patch_size,
            "width": tower.width,
            "layers": tower.layers,
            "heads": tower.heads,
            "mlp_ratio": tower.mlp_ratio,
        },
        "projector_config": {
            "model_type": "mlp_projector",
            "projector_type": "downsample_mlp_gelu",
            "depth": 2,
            "downsample_ratio": 2,
            "mlp_ratio": 1,
            "input_dim": tower.width,
            "n_embed": language["hidden_size"],
        },
        "language_config": language,
    }


def vl2_config(vocab_size: int) -> dict[str, Any]:
    """`config.json` of vl2-nano."""
    return official_config(tower_config(), MAX_TILES, _language_config(vocab_size))


def processor_configs(tower: SiglipConfig, max_tiles: int) -> dict[str, dict[str, Any]]:
    """The other JSON files of a small DeepSeek-VL2's folder, by name."""
    bos, eos, pad = SPECIAL_TOKENS[:3]
    return {
        "processor_config.json": {
            "add_special_token": False,
            "candidate_resolutions": _candidates(tower, max_tiles),
            "downsample_ratio": 2,
            "ignore_id": -100,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "image_token": "<image>",
            "mask_prompt": False,
            "normalize": True,
            "pad_token": pad,
            "patch_size": tower.patch_size,
            "processor_class": "DeepseekVLV2Processor",
            "sft_format": "deepseek",
        },
        "special_tokens_map.json": {"bos_token": bos, "eos_token": eos, "pad_token": pad},
        "tokenizer_config.json": {
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": bos,
            "clean_up_tokenization_spaces": False,
            "eos_token": eos,
            "model_max_length": MAX_POSITIONS,
            "pad_token": pad,
            "tokenizer_class": "LlamaTokenizerFast",
            "unk_token": None,
        },
    }
