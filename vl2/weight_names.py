"""Names of DeepSeek-VL2's tensors and the parameters that they fill.

Parameters keep their official names, except that the experts of a layer are stacked: expert e's gate and
up projections are the halves of `experts.gate_up[e]`, its down projection is `experts.down[e]`.
Placeholders: `{n}` a number, `{e}` an expert's number, `{p}` weight or bias, others as in `_PLACEHOLDERS`.
"""

from ..blocks.checkpoints.key_mapping import ParameterSlice, name_pattern
from ..text.weight_names import keep_float32 as keep_float32
from ..text.weight_names import official_tensors as official_tensors

_PLACEHOLDERS = {
    "{n}": r"\d+",
    "{e}": r"\d+",
    "{p}": r"weight|bias",
    "{attn}": r"q_proj|k_proj|v_proj|o_proj|q_a_proj|q_a_layernorm|q_b_proj"
    r"|kv_a_proj_with_mqa|kv_a_layernorm|kv_b_proj",
    "{mlp}": r"gate_proj|up_proj|down_proj",
    "{pool}": r"q|kv|proj|norm|mlp\.fc1|mlp\.fc2",
}

_UNCHANGED = """
    image_newline
    view_seperator
    vision.pos_embed
    vision.patch_embed.proj.{p}
    vision.blocks.{n}.norm1.{p}
    vision.blocks.{n}.norm2.{p}
    vision.blocks.{n}.attn.qkv.{p}
    vision.blocks.{n}.attn.proj.{p}
    vision.blocks.{n}.mlp.fc1.{p}
    vision.blocks.{n}.mlp.fc2.{p}
    vision.norm.{p}
    projector.layers.{n}.{p}
    language.model.embed_tokens.weight
    language.model.layers.{n}.self_attn.{attn}.weight
    language.model.layers.{n}.input_layernorm.weight
    language.model.layers.{n}.post_attention_layernorm.weight
    language.model.layers.{n}.mlp.{mlp}.weight
    language.model.layers.{n}.mlp.shared_experts.{mlp}.weight
    language.model.layers.{n}.mlp.gate.weight
    language.model.layers.{n}.mlp.gate.e_score_correction_bias
    language.model.norm.weight
    language.lm_head.weight
"""  # "view_seperator" is the checkpoints' own spelling

# Under `language.model.layers.{n}.mlp.experts`: name, parameter, and part (i of n) of the expert's slice.
_EXPERTS: list[tuple[str, str, tuple[int, int] | None]] = [
    ("{e}.gate_proj.weight", "gate_up", (0, 2)),
    ("{e}.up_proj.weight", "gate_up", (1, 2)),
    ("{e}.down_proj.weight", "down", None),
]

# In the files but unused: SigLIP's pooling head, and tables that follow from the config.
_UNUSED = """
    vision.attn_pool.latent
    vision.attn_pool.{pool}.{p}
    language.model.layers.{n}.self_attn.rotary_emb.inv_freq
"""

_UNCHANGED_PATTERNS = [name_pattern(name, _PLACEHOLDERS) for name in _UNCHANGED.split()]
_UNUSED_PATTERNS = [name_pattern(name, _PLACEHOLDERS) for name in _UNUSED.split()]
_EXPERT_PATTERNS = [
    (name_pattern(f"language.model.layers.{{n}}.mlp.experts.{name}", _PLACEHOLDERS), parameter, part)
    for name, parameter, part in _EXPERTS
]


def key_map(name: str) -> ParameterSlice | None:
    """The slice that an official tensor fills; None for one that is known and unused.

    Raises `KeyError` for an unknown name.
    """
    if any(pattern.fullmatch(name) for pattern in _UNCHANGED_PATTERNS):
        return ParameterSlice(name)
    for pattern, parameter, part in _EXPERT_PATTERNS:
        if match := pattern.fullmatch(name):
            layer, expert = match.groups()
            stacked = f"language.model.layers.{layer}.mlp.experts.{parameter}"
            return ParameterSlice(stacked, select=(int(expert),), part=part)
    if any(pattern.fullmatch(name) for pattern in _UNUSED_PATTERNS):
        return None
    raise KeyError(name)
