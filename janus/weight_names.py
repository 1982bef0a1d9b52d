"""Names of Janus's tensors: the official ones, which are also our model's, and transformers'.

One table holds both. On each line the left name is the official one (`deepseek-ai/Janus-Pro-*`), the
right one that of transformers' `JanusForConditionalGeneration`, which exists with and without a
leading `model.` (the head `lm_head` never has it). Holes: `{n}` a number, `{p}` weight or bias, and
the three groups of leaves below; a name's holes are filled alike on both sides.

Without `model.`, transformers' `language_model.` is the inner model, so `language_model.layers.0` there
is `language_model.model.layers.0` here. Each list of names accepts only its own spelling: no name has
two meanings, and a folder that mixes both is refused.
"""

import re
from collections.abc import Iterable

from ..blocks.checkpoints.key_mapping import KeyMap, ParameterSlice
from ..blocks.errors import CheckpointError, ConfigError

_HOLES = {
    "{n}": r"\d+",
    "{p}": r"weight|bias",
    "{res}": r"norm1|norm2|conv1|conv2|nin_shortcut",
    "{attn}": r"norm|q|k|v|proj_out",
    "{lm}": r"self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj|input_layernorm|post_attention_layernorm",
}

_VIT, _HF_VIT = "vision_model.vision_tower", "vision_model"
_VQ, _HF_VQ = "gen_vision_model", "vqmodel"
_ENC, _HF_ENC = f"{_VQ}.encoder", f"{_HF_VQ}.encoder"
_DEC, _HF_DEC = f"{_VQ}.decoder", f"{_HF_VQ}.decoder"
_BLOCK, _HF_BLOCK = f"{_VIT}.blocks.{{n}}", f"{_HF_VIT}.encoder.layers.{{n}}"

_TABLE: list[tuple[str, str]] = [
    # The eye: SigLIP, as timm names it.
    (f"{_VIT}.pos_embed", f"{_HF_VIT}.embeddings.position_embedding.weight"),
    (f"{_VIT}.patch_embed.proj.{{p}}", f"{_HF_VIT}.embeddings.patch_embedding.{{p}}"),
    (f"{_BLOCK}.norm1.{{p}}", f"{_HF_BLOCK}.layer_norm1.{{p}}"),
    (f"{_BLOCK}.norm2.{{p}}", f"{_HF_BLOCK}.layer_norm2.{{p}}"),
    (f"{_BLOCK}.attn.qkv.{{p}}", f"{_HF_BLOCK}.self_attn.q_proj.{{p}}"),
    (f"{_BLOCK}.attn.qkv.{{p}}", f"{_HF_BLOCK}.self_attn.k_proj.{{p}}"),
    (f"{_BLOCK}.attn.qkv.{{p}}", f"{_HF_BLOCK}.self_attn.v_proj.{{p}}"),
    (f"{_BLOCK}.attn.proj.{{p}}", f"{_HF_BLOCK}.self_attn.projection_layer.{{p}}"),
    (f"{_BLOCK}.mlp.fc1.{{p}}", f"{_HF_BLOCK}.mlp.fc1.{{p}}"),
    (f"{_BLOCK}.mlp.fc2.{{p}}", f"{_HF_BLOCK}.mlp.fc2.{{p}}"),
    (f"{_VIT}.norm.{{p}}", f"{_HF_VIT}.post_layernorm.{{p}}"),
    ("aligner.layers.0.{p}", "aligner.fc1.{p}"),
    ("aligner.layers.2.{p}", "aligner.hidden_layers.0.{p}"),
    ("aligner.layers.4.{p}", "aligner.hidden_layers.1.{p}"),
    ("aligner.layers.6.{p}", "aligner.hidden_layers.2.{p}"),
    # The image tokenizer.
    (f"{_ENC}.conv_in.{{p}}", f"{_HF_ENC}.conv_in.{{p}}"),
    (f"{_ENC}.conv_blocks.{{n}}.res.{{n}}.{{res}}.{{p}}", f"{_HF_ENC}.down.{{n}}.block.{{n}}.{{res}}.{{p}}"),
    (
        f"{_ENC}.conv_blocks.{{n}}.attn.{{n}}.{{attn}}.{{p}}",
        f"{_HF_ENC}.down.{{n}}.attn.{{n}}.{{attn}}.{{p}}",
    ),
    (f"{_ENC}.conv_blocks.{{n}}.downsample.conv.{{p}}", f"{_HF_ENC}.down.{{n}}.downsample.conv.{{p}}"),
    (f"{_ENC}.mid.0.{{res}}.{{p}}", f"{_HF_ENC}.mid.block_1.{{res}}.{{p}}"),
    (f"{_ENC}.mid.1.{{attn}}.{{p}}", f"{_HF_ENC}.mid.attn_1.{{attn}}.{{p}}"),
    (f"{_ENC}.mid.2.{{res}}.{{p}}", f"{_HF_ENC}.mid.block_2.{{res}}.{{p}}"),
    (f"{_ENC}.norm_out.{{p}}", f"{_HF_ENC}.norm_out.{{p}}"),
    (f"{_ENC}.conv_out.{{p}}", f"{_HF_ENC}.conv_out.{{p}}"),
    (f"{_VQ}.quant_conv.{{p}}", f"{_HF_VQ}.quant_conv.{{p}}"),
    (f"{_VQ}.quantize.embedding.weight", f"{_HF_VQ}.quantize.embedding.weight"),
    (f"{_VQ}.post_quant_conv.{{p}}", f"{_HF_VQ}.post_quant_conv.{{p}}"),
    (f"{_DEC}.conv_in.{{p}}", f"{_HF_DEC}.conv_in.{{p}}"),
    (f"{_DEC}.mid.0.{{res}}.{{p}}", f"{_HF_DEC}.mid.block_1.{{res}}.{{p}}"),
    (f"{_DEC}.mid.1.{{attn}}.{{p}}", f"{_HF_DEC}.mid.attn_1.{{attn}}.{{p}}"),
    (f"{_DEC}.mid.2.{{res}}.{{p}}", f"{_HF_DEC}.mid.block_2.{{res}}.{{p}}"),
    (f"{_DEC}.conv_blocks.{{n}}.res.{{n}}.{{res}}.{{p}}", f"{_HF_DEC}.up.{{n}}.block.{{n}}.{{res}}.{{p}}"),
    (f"{_DEC}.conv_blocks.{{n}}.attn.{{n}}.{{attn}}.{{p}}", f"{_HF_DEC}.up.{{n}}.attn.{{n}}.{{attn}}.{{p}}"),
    (f"{_DEC}.conv_blocks.{{n}}.upsample.conv.{{p}}", f"{_HF_DEC}.up.{{n}}.upsample.conv.{{p}}"),
    (f"{_DEC}.norm_out.{{p}}", f"{_HF_DEC}.norm_out.{{p}}"),
    (f"{_DEC}.conv_out.{{p}}", f"{_HF_DEC}.conv_out.{{p}}"),
    # The hand: from codes to embeddings, from hidden states to codes.
    ("gen_embed.weight", "generation_embeddings.weight"),
    ("gen_aligner.layers.0.{p}", "generation_aligner.fc1.{p}"),
    ("gen_aligner.layers.2.{p}", "generation_aligner.hidden_layers.0.{p}"),
    ("gen_aligner.layers.4.{p}", "generation_aligner.hidden_layers.1.{p}"),
    ("gen_aligner.layers.6.{p}", "generation_aligner.hidden_layers.2.{p}"),
    ("gen_head.output_mlp_projector.{p}", "generation_head.proj_out.{p}"),
    ("gen_head.vision_head.{p}", "generation_head.vision_head.{p}"),
    # The language model: Llama.
    ("language_model.model.embed_tokens.weight", "language_model.embed_tokens.weight"),
    ("language_model.model.layers.{n}.{lm}.weight", "language_model.layers.{n}.{lm}.weight"),
    ("language_model.model.norm.weight", "language_model.norm.weight"),
    ("language_model.lm_head.weight", "lm_head.weight"),
]

# In files, but nothing that is computed needs them: SigLIP's pooling, a training counter, tables that
# follow from the config.
_UNUSED = [
    f"{_VIT}.attn_pool.latent",
    f"{_VIT}.attn_pool.{{pool}}.{{p}}",
    f"{_VQ}.quantize.codebook_used",
    "language_model.model.layers.{n}.self_attn.rotary_emb.inv_freq",
]
_HF_UNUSED = [
    f"{_HF_VIT}.embeddings.position_ids",
    "language_model.layers.{n}.self_attn.rotary_emb.inv_freq",
    "language_model.rotary_emb.inv_freq",
]
_HOLES["{pool}"] = r"q|kv|proj|norm|mlp\.fc1|mlp\.fc2"

_POS_EMBED = f"{_VIT}.pos_embed"
_EMBED, LM_HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
_QKV = re.compile(r"\.self_attn\.([qkv])_proj\.(?:weight|bias)$")
_HF_HEAD = "lm_head.weight"


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"(\{\w+\})", template)
    return re.compile("".join(f"({_HOLES[p]})" if p in _HOLES else re.escape(p) for p in parts))


_ORIGINAL = [_pattern(ours) for ours in dict.fromkeys(ours for ours, _ in _TABLE)]
_ORIGINAL_UNUSED = [_pattern(name) for name in _UNUSED]
_TRANSFORMERS = [(_pattern(theirs), re.sub(r"\{\w+\}", "{}", ours)) for ours, theirs in _TABLE]
_TRANSFORMERS_UNUSED = [_pattern(name) for name in _HF_UNUSED]


def original_keys(name: str) -> ParameterSlice | None:
    """Where a tensor of an official folder goes: to the parameter of the same name. None if it is
    known and unused; `KeyError` if the name is unknown."""
    if any(p.fullmatch(name) for p in _ORIGINAL):
        return ParameterSlice(name)
    if any(p.fullmatch(name) for p in _ORIGINAL_UNUSED):
        return None
    raise KeyError(name)


def transformers_keys(name: str) -> ParameterSlice | None:
    """Where a tensor of a transformers-format folder goes; its name may begin with `model.` or not.
    q, k and v of the eye are thirds of `attn.qkv`; the position table [T, D] becomes [1, T, D]. None if
    it is known and unused; `KeyError` if the name is unknown."""
    bare = name.removeprefix("model.")
    if bare == _HF_HEAD and bare != name:
        raise KeyError(name)
    for pattern, ours in _TRANSFORMERS:
        match = pattern.fullmatch(bare)
        if match:
            param = ours.format(*match.groups())
            third = _QKV.search(bare) if param.startswith(_VIT) else None
            part = ("qkv".index(third[1]), 3) if third else None
            return ParameterSlice(param, part=part, reshape=param == _POS_EMBED)
    if any(p.fullmatch(bare) for p in _TRANSFORMERS_UNUSED):
        return None
    raise KeyError(name)


def _tied_transformers_keys(name: str) -> ParameterSlice | tuple[ParameterSlice, ...] | None:
    to = transformers_keys(name)
    return (to, ParameterSlice(LM_HEAD)) if to is not None and to.param == _EMBED else to


def pick_key_map(names: Iterable[str], model_type: str, tied: bool = False) -> KeyMap:
    """The key map for a folder with tensors `names` and the config's `model_type`.

    `tied` is a transformers config's `tie_word_embeddings`: if it is true and the file has no head, the
    embedding fills the head too (Janus's own are never tied, and a stored head always wins).
    `ConfigError` for an unknown `model_type`; `CheckpointError` if the names are those of the other one.
    """
    maps: dict[str, KeyMap] = {"multi_modality": original_keys, "janus": transformers_keys}
    if model_type not in maps:
        raise ConfigError(f"model_type {model_type!r} is not a Janus model; accepted are {', '.join(maps)}")
    names = list(names)
    other = next(kind for kind in maps if kind != model_type)
    distinct = {kind: sum(_known(key_map, n) for n in names) for kind, key_map in maps.items()}
    if distinct[other] > distinct[model_type] and distinct[other] == len(names):
        raise CheckpointError(
            f"config.json says model_type {model_type!r}, but the tensors are named as in {other!r} folders, "
            f"e.g. {next(n for n in names if not _known(maps[model_type], n))!r}"
        )
    if model_type == "janus" and tied and _HF_HEAD not in names:
        return _tied_transformers_keys
    return maps[model_type]


def _known(key_map: KeyMap, name: str) -> bool:
    try:
        key_map(name)
    except KeyError:
        return False
    return True
