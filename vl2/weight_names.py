"""Names of DeepSeek-VL2's tensors: official on the left, the parameters they fill on the right.

All parameters keep their official names, except that the experts of a layer are stacked: expert e's gate and
up projections are halves of `experts.gate_up[e]`, its down projection is `experts.down[e]`.
Holes: `{n}` a number, `{e}` an expert's number, `{p}` weight or bias.
"""

import re
from collections.abc import Iterator

from torch import Tensor

from ..blocks.checkpoints.key_mapping import ParameterSlice

_HOLES = {
    "{n}": r"\d+",
    "{e}": r"(?P<e>\d+)",
    "{p}": r"weight|bias",
    "{attn}": r"q_proj|k_proj|v_proj|o_proj|q_a_proj|q_a_layernorm|q_b_proj"
    r"|kv_a_proj_with_mqa|kv_a_layernorm|kv_b_proj",
    "{mlp}": r"gate_proj|up_proj|down_proj",
    "{pool}": r"q|kv|proj|norm|mlp\.fc1|mlp\.fc2",
}
_LAYER, _BLOCK = "language.model.layers.{n}", "vision.blocks.{n}"
_EXPERT = f"{_LAYER}.mlp.experts.{{e}}"

_SAME = [
    "image_newline",
    "view_seperator",  # the checkpoints' own spelling
    "vision.pos_embed",
    "vision.patch_embed.proj.{p}",
    f"{_BLOCK}.norm1.{{p}}",
    f"{_BLOCK}.norm2.{{p}}",
    f"{_BLOCK}.attn.qkv.{{p}}",
    f"{_BLOCK}.attn.proj.{{p}}",
    f"{_BLOCK}.mlp.fc1.{{p}}",
    f"{_BLOCK}.mlp.fc2.{{p}}",
    "vision.norm.{p}",
    "projector.layers.{n}.{p}",
    "language.model.embed_tokens.weight",
    f"{_LAYER}.self_attn.{{attn}}.weight",
    f"{_LAYER}.input_layernorm.weight",
    f"{_LAYER}.post_attention_layernorm.weight",
    f"{_LAYER}.mlp.{{mlp}}.weight",
    f"{_LAYER}.mlp.shared_experts.{{mlp}}.weight",
    f"{_LAYER}.mlp.gate.weight",
    f"{_LAYER}.mlp.gate.e_score_correction_bias",
    "language.model.norm.weight",
    "language.lm_head.weight",
]
_STACKED: list[tuple[str, str, tuple[int, int] | None]] = [
    (f"{_EXPERT}.gate_proj.weight", "gate_up", (0, 2)),
    (f"{_EXPERT}.up_proj.weight", "gate_up", (1, 2)),
    (f"{_EXPERT}.down_proj.weight", "down", None),
]
# Nothing that is computed needs them: SigLIP's pooling, tables that follow from the config.
_UNUSED = [
    "vision.attn_pool.latent",
    "vision.attn_pool.{pool}.{p}",
    f"{_LAYER}.self_attn.rotary_emb.inv_freq",
]


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"(\{\w+\})", template)
    return re.compile("".join(f"(?:{_HOLES[p]})" if p in _HOLES else re.escape(p) for p in parts))


_SAME_PATTERNS = [_pattern(name) for name in _SAME]
_STACKED_PATTERNS = [(_pattern(name), stack, part) for name, stack, part in _STACKED]
_UNUSED_PATTERNS = [_pattern(name) for name in _UNUSED]
_STACK = re.compile(r"(.*\.mlp\.experts)\.(gate_up|down)")


def key_map(name: str) -> ParameterSlice | None:
    """Where an official tensor goes. None if it is known and unused; `KeyError` if the name is unknown."""
    if any(pattern.fullmatch(name) for pattern in _SAME_PATTERNS):
        return ParameterSlice(name)
    for pattern, stack, part in _STACKED_PATTERNS:
        match = pattern.fullmatch(name)
        if match:
            expert = match["e"]
            return ParameterSlice(f"{name[: match.start('e')]}{stack}", select=(int(expert),), part=part)
    if any(pattern.fullmatch(name) for pattern in _UNUSED_PATTERNS):
        return None
    raise KeyError(name)


def keep_float32(name: str) -> bool:
    """Parameters that are small and decide between close calls: the gate's correction bias."""
    return name.endswith(".gate.e_score_correction_bias")


def official_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A parameter as the official tensors that fill it: `key_map` the other way round, for writing."""
    match = _STACK.fullmatch(name)
    if not match:
        yield name, tensor
        return
    for expert, piece in enumerate(tensor):
        if match[2] == "down":
            yield f"{match[1]}.{expert}.down_proj.weight", piece
        else:
            gate, up = piece.chunk(2)
            yield f"{match[1]}.{expert}.gate_proj.weight", gate
            yield f"{match[1]}.{expert}.up_proj.weight", up
