"""Names of the text models' tensors, in transformers' spelling, and the parameters that they fill.

Parameters keep these names, except that biases of queries, keys and values stand beside their layers, and
that the experts of a layer are stacked: expert e's gate and up projections are the halves of
`experts.gate_up[e]`, its down projection is `experts.down[e]`. Placeholders: `{n}` a number, `{e}` an
expert's number, others as in `_PLACEHOLDERS`.
"""

import re
from collections.abc import Iterator

from torch import Tensor

from ..blocks.checkpoints.key_mapping import KeyMap, ParameterSlice, name_pattern

_PLACEHOLDERS = {
    "{n}": r"\d+",
    "{e}": r"\d+",
    "{attn}": r"q_proj|k_proj|v_proj|o_proj|q_a_proj|q_a_layernorm|q_b_proj"
    r"|kv_a_proj_with_mqa|kv_a_layernorm|kv_b_proj",
    "{mlp}": r"gate_proj|up_proj|down_proj",
    "{qkv}": r"[qkv]",
}

_UNCHANGED = """
    model.embed_tokens.weight
    model.layers.{n}.self_attn.{attn}.weight
    model.layers.{n}.input_layernorm.weight
    model.layers.{n}.post_attention_layernorm.weight
    model.layers.{n}.mlp.{mlp}.weight
    model.layers.{n}.mlp.shared_experts.{mlp}.weight
    model.layers.{n}.mlp.gate.weight
    model.layers.{n}.mlp.gate.e_score_correction_bias
    model.norm.weight
    lm_head.weight
"""
_UNCHANGED_PATTERNS = [name_pattern(name, _PLACEHOLDERS) for name in _UNCHANGED.split()]

# Name, parameter, and part (i of n) of the parameter's slice.
_EXPERTS: list[tuple[str, str, tuple[int, int] | None]] = [
    ("{e}.gate_proj.weight", "gate_up", (0, 2)),
    ("{e}.up_proj.weight", "gate_up", (1, 2)),
    ("{e}.down_proj.weight", "down", None),
]
_EXPERT_PATTERNS = [
    (name_pattern(f"model.layers.{{n}}.mlp.experts.{name}", _PLACEHOLDERS), parameter, part)
    for name, parameter, part in _EXPERTS
]
_BIAS = name_pattern("model.layers.{n}.self_attn.{qkv}_proj.bias", _PLACEHOLDERS)
_TABLE = name_pattern("model.layers.{n}.self_attn.rotary_emb.inv_freq", _PLACEHOLDERS)
"""A table that follows from the config."""

# Of the layer for multi-token prediction: its own parts, its block's, and copies of the model's.
_AHEAD = {
    "enorm.weight": "ahead.enorm.weight",
    "hnorm.weight": "ahead.hnorm.weight",
    "eh_proj.weight": "ahead.eh_proj.weight",
    "shared_head.norm.weight": "ahead.norm.weight",
}
_AHEAD_COPIES = ("embed_tokens.weight", "shared_head.head.weight")

_OWN = re.compile(r"ahead\..+|model\.layers\.\d+\.self_attn\.[qkv]_bias")
"""Parameters that quantized folders store under their own names."""
_STACKED = re.compile(r"(.*\.mlp\.experts)\.(gate_up|down)")
_STORED_BIAS = re.compile(r"(.*\.self_attn)\.([qkv])_bias")


def key_map(name: str) -> ParameterSlice | None:
    """The slice that a tensor fills; None for one that is known and unused. Raises `KeyError` for an unknown
    name."""
    if any(pattern.fullmatch(name) for pattern in _UNCHANGED_PATTERNS):
        return ParameterSlice(name)
    if match := _BIAS.fullmatch(name):
        return ParameterSlice(f"model.layers.{match[1]}.self_attn.{match[2]}_bias")
    for pattern, parameter, part in _EXPERT_PATTERNS:
        if match := pattern.fullmatch(name):
            layer, expert = match.groups()
            stacked = f"model.layers.{layer}.mlp.experts.{parameter}"
            return ParameterSlice(stacked, select=(int(expert),), part=part)
    if _TABLE.fullmatch(name):
        return None
    raise KeyError(name)


def pick_key_map(num_layers: int, tied: bool = False) -> KeyMap:
    """The key map of a model with so many layers: the one after them is for multi-token prediction, and its
    copies of embedding and head are not used; nor is a tied model's head, if the files have one."""
    extra = f"model.layers.{num_layers}."

    def find(name: str) -> ParameterSlice | None:
        if _OWN.fullmatch(name):
            return ParameterSlice(name)
        if tied and name == "lm_head.weight":
            return None
        if not name.startswith(extra):
            return key_map(name)
        leaf = name.removeprefix(extra)
        if leaf in _AHEAD_COPIES:
            return None
        if leaf in _AHEAD:
            return ParameterSlice(_AHEAD[leaf])
        target = key_map(name)
        if target is None:
            return None
        param = f"ahead.block.{target.param.removeprefix(extra)}"
        return ParameterSlice(param, target.select, target.part)

    return find


def keep_float32(name: str) -> bool:
    """Whether a parameter stays in float32: the router's correction bias, which is small and decides ties."""
    return name.endswith(".gate.e_score_correction_bias")


def stored_tensors(name: str, tensor: Tensor, num_layers: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors in the files of a parameter, the inverse of `pick_key_map`: for writing
    checkpoints. Copies of embedding and head are left out."""
    if name.startswith("ahead."):
        leaf = next((stored for stored, param in _AHEAD.items() if param == name), None)
        name = f"model.layers.{num_layers}.{leaf or name.removeprefix('ahead.block.')}"
    if match := _STORED_BIAS.fullmatch(name):
        yield f"{match[1]}.{match[2]}_proj.bias", tensor
        return
    yield from official_tensors(name, tensor)


def official_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors in the files of a parameter whose name is theirs, but for stacked experts, which
    are stored one by one: for DeepSeek-VL2, too."""
    if not (match := _STACKED.fullmatch(name)):
        yield name, tensor
        return
    for expert, weight in enumerate(tensor):
        if match[2] == "down":
            yield f"{match[1]}.{expert}.down_proj.weight", weight
        else:
            gate, up = weight.chunk(2)
            yield f"{match[1]}.{expert}.gate_proj.weight", gate
            yield f"{match[1]}.{expert}.up_proj.weight", up
