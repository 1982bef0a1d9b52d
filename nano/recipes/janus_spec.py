"""What `janus-nano` is: its configs in the official schema with the extensions for small models, and its
prompts as token ids, exactly as the pipeline makes them.
"""

from pathlib import Path
from typing import Any

from ...blocks.model.siglip import SiglipConfig
from ...janus.prompts import SYSTEM_PROMPT
from ...tokenizers.vq.config import VQConfig
from .pictures import SIDE
from .things_janus_spec import SPECIAL_TOKENS, processor_configs
from .things_tokenizer import CAPTION_REQUESTS, write_files
from .tokenizer import corpus, train_tokenizer, write_vocabulary

HIDDEN, VISION_WIDTH, CODEBOOK, CODE_DIM = 384, 192, 2048, 8
_MAX_POSITIONS = 2048

GUIDANCE_SCALE = 2.5
"""The scale of its best images: at Janus-Pro's 5 it overdoes what the prompt says and leaves its world."""


def vq_config() -> VQConfig:
    """The image tokenizer: 8 pixels a code, so 256 codes an image."""
    return VQConfig(CODEBOOK, CODE_DIM, ch=32, ch_mult=(1, 1, 2, 4), z_channels=64, num_res_blocks=1)


def tower_config() -> SiglipConfig:
    """The vision tower: patches of 16 pixels, so 64 tokens an image."""
    return SiglipConfig(image_size=SIDE, patch_size=16, width=VISION_WIDTH, layers=4, heads=3, mlp_ratio=4)


def _image_generation_config() -> dict[str, Any]:
    vq = vq_config()
    return {
        "gen_aligner_config": _projector("gen_aligner", CODE_DIM),
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": {"image_token_embed": HIDDEN, "image_token_size": CODEBOOK, "n_embed": HIDDEN},
        },
        "gen_vision_config": {
            "cls": "VQ-16",
            "model_type": "gen_vision",
            "params": {
                "image_token_size": CODEBOOK,
                "n_embed": CODE_DIM,
                "ch": vq.ch,
                "ch_mult": list(vq.ch_mult),
                "z_channels": vq.z_channels,
                "num_res_blocks": vq.num_res_blocks,
            },
        },
    }


def _projector(kind: str, width: int) -> dict[str, Any]:
    params = {"depth": 2, "input_dim": width, "n_embed": HIDDEN, "projector_type": "mlp_gelu"}
    return {"cls": "MlpProjector", "model_type": kind, "params": params}


def janus_config(vocab_size: int) -> dict[str, Any]:
    """`config.json` of janus-nano."""
    tower = tower_config()
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": "bfloat16",
        "aligner_config": _projector("aligner", VISION_WIDTH),
        **_image_generation_config(),
        "language_config": {
            "hidden_size": HIDDEN,
            "intermediate_size": 832,
            "max_position_embeddings": _MAX_POSITIONS,
            "model_type": "llama",
            "num_attention_heads": 6,
            "num_hidden_layers": 8,
            "num_key_value_heads": 6,
            "torch_dtype": "bfloat16",
            "vocab_size": vocab_size,
        },
        "vision_config": {
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": {
                "image_size": SIDE,
                "model_name": "siglip_nano_patch16_128",
                "select_feature": "same",
                "select_layer": -1,
                "width": tower.width,
                "layers": tower.layers,
                "heads": tower.heads,
                "patch_size": tower.patch_size,
                "mlp_ratio": tower.mlp_ratio,
            },
        },
    }


def write_folder(folder: Path) -> None:
    """Write everything of a janus-nano folder but its weights; the same files at every call."""
    tokenizer = train_tokenizer(SPECIAL_TOKENS, [SYSTEM_PROMPT + "\n\n"])
    files = processor_configs(SIDE, tower_config().num_patches, GUIDANCE_SCALE)
    write_files(folder, tokenizer, janus_config(tokenizer.get_vocab_size()), files)
    texts = list(corpus(0, 3000))  # sentences, questions and answers in turn
    write_vocabulary(folder, texts[::3], [*CAPTION_REQUESTS, *texts[1::3]])
