"""open_clip's CLIP as transformers' CLIPModel: names of tensors, and the settings."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...blocks.errors import CheckpointError

# open_clip's names -> transformers' names; # is a number. Both towers use the same names within a block.
_BLOCK = (
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)
RENAMES = {
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # spelt so in transformers
    "visual.ln_post": "vision_model.post_layernorm",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "logit_scale": "logit_scale",
    **{f"visual.transformer.resblocks.#.{a}": f"vision_model.encoder.layers.#.{b}" for a, b in _BLOCK},
    **{f"transformer.resblocks.#.{a}": f"text_model.encoder.layers.#.{b}" for a, b in _BLOCK},
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_FUSED = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")


def convert_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors under transformers' names. Raises CheckpointError for a name it lacks."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        fused = _FUSED.fullmatch(name)
        if name in _TRANSPOSED:
            out[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif fused:
            visual, number, kind = fused.groups()
            attention = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}.self_attn"
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{attention}.{part}_proj.{kind}"] = piece.contiguous()
        else:
            out[_new_name(name)] = tensor
    return out


def _new_name(name: str) -> str:
    number = re.search(r"resblocks\.(\d+)\.", name)
    plain = name.replace(number.group(0), "resblocks.#.") if number else name
    for ending in ("", ".weight", ".bias"):
        if plain.endswith(ending) and (new := RENAMES.get(plain.removesuffix(ending))):
            return new.replace("#", number.group(1) if number else "#") + ending
    raise CheckpointError(
        f"the colour classifier has the tensor {name!r}; accepted: open_clip's names of a ViT"
    )


def open_clip_config(settings: Mapping[str, Any], transformers: Any) -> Any:
    """A CLIPConfig from open_clip's `model_cfg`. OpenAI's networks use the quick GELU."""
    try:
        vision, text = settings["vision_cfg"], settings["text_cfg"]
        act = "quick_gelu" if settings.get("quick_gelu", False) else "gelu"
        return transformers.CLIPConfig(
            projection_dim=settings["embed_dim"],
            vision_config={
                "hidden_size": vision["width"],
                "intermediate_size": 4 * vision["width"],
                "num_hidden_layers": vision["layers"],
                "num_attention_heads": vision["width"] // vision.get("head_width", 64),
                "image_size": vision["image_size"],
                "patch_size": vision["patch_size"],
                "hidden_act": act,
                "projection_dim": settings["embed_dim"],
            },
            text_config={
                "hidden_size": text["width"],
                "intermediate_size": 4 * text["width"],
                "num_hidden_layers": text["layers"],
                "num_attention_heads": text["heads"],
                "max_position_embeddings": text["context_length"],
                "vocab_size": text["vocab_size"],
                "hidden_act": act,
                "projection_dim": settings["embed_dim"],
                "bos_token_id": text["vocab_size"] - 2,
                "eos_token_id": text["vocab_size"] - 1,
            },
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"open_clip_config.json lacks {error}; accepted: open_clip's model_cfg"
        ) from error
