"""Names of Janus's tensors: one table of the official names and those in transformers' format.

The left column holds the official names (`deepseek-ai/Janus-Pro-*`), which are also our parameters'. The
right column holds those of transformers' `JanusForConditionalGeneration`, without the leading `model.` that
its files may have (the head `lm_head` never has it). Placeholders are those of `_PLACEHOLDERS`; those of a
row match the same text on both sides.

Without `model.`, transformers' `language_model.` is the inner model, so `language_model.layers.0` there is
`language_model.model.layers.0` here. Each key map accepts its own spelling only: no name has two meanings,
and a folder that mixes both is refused.
"""

import re
from collections.abc import Iterable

from ..blocks.checkpoints.key_mapping import KeyMap, ParameterSlice, name_pattern
from ..blocks.errors import CheckpointError, ConfigError

_PLACEHOLDERS = {
    "{n}": r"\d+",
    "{p}": r"weight|bias",
    "{res}": r"norm1|norm2|conv1|conv2|nin_shortcut",
    "{attn}": r"norm|q|k|v|proj_out",
    "{in}": r"conv_in|proj_(?:in|out)|blocks\.\d\.\d",
    "{lm}": r"self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj|input_layernorm|post_attention_layernorm",
    "{pool}": r"q|kv|proj|norm|mlp\.fc1|mlp\.fc2",
}

# Each block: prefix of the official names, prefix of transformers' names, and the rows without them.
_SIGLIP = """
    pos_embed                          embeddings.position_embedding.weight
    patch_embed.proj.{p}               embeddings.patch_embedding.{p}
    blocks.{n}.norm1.{p}               encoder.layers.{n}.layer_norm1.{p}
    blocks.{n}.norm2.{p}               encoder.layers.{n}.layer_norm2.{p}
    blocks.{n}.attn.qkv.{p}            encoder.layers.{n}.self_attn.q_proj.{p}
    blocks.{n}.attn.qkv.{p}            encoder.layers.{n}.self_attn.k_proj.{p}
    blocks.{n}.attn.qkv.{p}            encoder.layers.{n}.self_attn.v_proj.{p}
    blocks.{n}.attn.proj.{p}           encoder.layers.{n}.self_attn.projection_layer.{p}
    blocks.{n}.mlp.fc1.{p}             encoder.layers.{n}.mlp.fc1.{p}
    blocks.{n}.mlp.fc2.{p}             encoder.layers.{n}.mlp.fc2.{p}
    norm.{p}                           post_layernorm.{p}
"""
# Encoder (also of patches) and decoder of the image tokenizer; SIDE is "down" or "up".
_VQ_HALF = """
    {in}.{p}                           {in}.{p}
    conv_blocks.{n}.res.{n}.{res}.{p}  SIDE.{n}.block.{n}.{res}.{p}
    conv_blocks.{n}.attn.{n}.{attn}.{p} SIDE.{n}.attn.{n}.{attn}.{p}
    conv_blocks.{n}.SIDEsample.conv.{p} SIDE.{n}.SIDEsample.conv.{p}
    mid.0.{res}.{p}                    mid.block_1.{res}.{p}
    mid.1.{attn}.{p}                   mid.attn_1.{attn}.{p}
    mid.2.{res}.{p}                    mid.block_2.{res}.{p}
    norm_out.{p}                       norm_out.{p}
    conv_out.{p}                       conv_out.{p}
"""
_VQ = """
    quant_conv.{p}                     quant_conv.{p}
    quantize.embedding.weight          quantize.embedding.weight
    post_quant_conv.{p}                post_quant_conv.{p}
"""
_MLP_ADAPTOR = """
    layers.0.{p}                       fc1.{p}
    layers.2.{p}                       hidden_layers.0.{p}
    layers.4.{p}                       hidden_layers.1.{p}
    layers.6.{p}                       hidden_layers.2.{p}
"""
_IMAGE_EMBEDDING_AND_HEAD = """
    gen_embed.weight                   generation_embeddings.weight
    gen_head.output_mlp_projector.{p}  generation_head.proj_out.{p}
    gen_head.vision_head.{p}           generation_head.vision_head.{p}
"""
_LLAMA = """
    language_model.model.embed_tokens.weight          language_model.embed_tokens.weight
    language_model.model.layers.{n}.{lm}.weight       language_model.layers.{n}.{lm}.weight
    language_model.model.norm.weight                  language_model.norm.weight
    language_model.lm_head.weight                     lm_head.weight
"""
_TABLE = [
    ("vision_model.vision_tower.", "vision_model.", _SIGLIP),
    ("aligner.", "aligner.", _MLP_ADAPTOR),
    ("gen_vision_model.encoder.", "vqmodel.encoder.", _VQ_HALF.replace("SIDE", "down")),
    ("gen_vision_model.", "vqmodel.", _VQ),
    ("gen_vision_model.decoder.", "vqmodel.decoder.", _VQ_HALF.replace("SIDE", "up")),
    ("gen_aligner.", "generation_aligner.", _MLP_ADAPTOR),
    ("", "", _IMAGE_EMBEDDING_AND_HEAD),
    ("", "", _LLAMA),
]

# In the files but unused: SigLIP's pooling head, a training counter, and tables that follow from the config.
_UNUSED = [
    "vision_model.vision_tower.attn_pool.latent",
    "vision_model.vision_tower.attn_pool.{pool}.{p}",
    "gen_vision_model.quantize.codebook_used",
    "language_model.model.layers.{n}.self_attn.rotary_emb.inv_freq",
]
_TRANSFORMERS_UNUSED = [
    "vision_model.embeddings.position_ids",
    "language_model.layers.{n}.self_attn.rotary_emb.inv_freq",
    "language_model.rotary_emb.inv_freq",
]

_POS_EMBED = "vision_model.vision_tower.pos_embed"
_EMBEDDING, _LM_HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
_TRANSFORMERS_LM_HEAD = "lm_head.weight"
_SPLIT_QKV = re.compile(r"vision_model\..*\.self_attn\.([qkv])_proj\.(?:weight|bias)")


def _pattern(template: str) -> re.Pattern[str]:
    return name_pattern(template, _PLACEHOLDERS)


_ROWS = [
    (official + row.split()[0], theirs + row.split()[1])
    for official, theirs, rows in _TABLE
    for row in rows.strip().splitlines()
]
_OFFICIAL_PATTERNS = [_pattern(ours) for ours in dict.fromkeys(ours for ours, _ in _ROWS)]
_UNUSED_PATTERNS = [_pattern(name) for name in _UNUSED]
_TRANSFORMERS_PATTERNS = [(_pattern(theirs), re.sub(r"\{\w+\}", "{}", ours)) for ours, theirs in _ROWS]
_TRANSFORMERS_UNUSED_PATTERNS = [_pattern(name) for name in _TRANSFORMERS_UNUSED]


def original_keys(name: str) -> ParameterSlice | None:
    """The key map of an official folder: every tensor fills the parameter of the same name.

    None for a tensor that is known and unused; raises `KeyError` for an unknown name.
    """
    if any(pattern.fullmatch(name) for pattern in _OFFICIAL_PATTERNS):
        return ParameterSlice(name)
    if any(pattern.fullmatch(name) for pattern in _UNUSED_PATTERNS):
        return None
    raise KeyError(name)


def transformers_keys(name: str) -> ParameterSlice | None:
    """The key map of a transformers-format folder, whose names may begin with `model.` or not.

    SigLIP's q, k and v are thirds of `attn.qkv`; its position table [T, D] becomes [1, T, D]. None for a
    tensor that is known and unused; raises `KeyError` for an unknown name.
    """
    bare = name.removeprefix("model.")
    if bare == _TRANSFORMERS_LM_HEAD and bare != name:
        raise KeyError(name)
    for pattern, template in _TRANSFORMERS_PATTERNS:
        if match := pattern.fullmatch(bare):
            param, split = template.format(*match.groups()), _SPLIT_QKV.fullmatch(bare)
            part = ("qkv".index(split[1]), 3) if split else None
            return ParameterSlice(param, part=part, reshape=param == _POS_EMBED)
    if any(pattern.fullmatch(bare) for pattern in _TRANSFORMERS_UNUSED_PATTERNS):
        return None
    raise KeyError(name)


def _tied_transformers_keys(name: str) -> ParameterSlice | tuple[ParameterSlice, ...] | None:
    target = transformers_keys(name)
    if target is not None and target.param == _EMBEDDING:
        return target, ParameterSlice(_LM_HEAD)
    return target


def pick_key_map(names: Iterable[str], model_type: str, tied: bool = False) -> KeyMap:
    """The key map of a folder with tensors `names` and the config's `model_type`.

    `tied` is a transformers config's `tie_word_embeddings`: if it is true and the files have no head, the
    embedding fills the head too. (The released models are not tied.) Raises `ConfigError` for an unknown
    `model_type`, and `CheckpointError` if the names are those of the other format.
    """
    maps: dict[str, KeyMap] = {"multi_modality": original_keys, "janus": transformers_keys}
    if model_type not in maps:
        raise ConfigError(f"model_type {model_type!r} is not a Janus model; accepted are {', '.join(maps)}")
    names = list(names)
    other = next(kind for kind in maps if kind != model_type)
    known = {kind: sum(_is_known(key_map, name) for name in names) for kind, key_map in maps.items()}
    if known[other] > known[model_type] and known[other] == len(names):
        raise CheckpointError(
            f"config.json says model_type {model_type!r}, but the tensors are named as in {other!r} folders, "
            f"e.g. {next(name for name in names if not _is_known(maps[model_type], name))!r}"
        )
    if model_type == "janus" and tied and _TRANSFORMERS_LM_HEAD not in names:
        return _tied_transformers_keys
    return maps[model_type]


def _is_known(key_map: KeyMap, name: str) -> bool:
    try:
        key_map(name)
    except KeyError:
        return False
    return True
