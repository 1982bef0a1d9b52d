"""The architecture of a text model, read from `config.json`: DeepSeek-V2, V3 and R1, and the Qwen2 and Llama
models into which R1 was distilled."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..blocks.errors import ConfigError
from ..blocks.foreign_files import model_type_error
from ..blocks.json_config import Section
from ..blocks.model.context import DecoderConfig, LatentConfig
from ..blocks.model.moe import MoEConfig
from ..tokenizers.text import read_settings
from .rope import read_rotary

_DEEPSEEK_V2: dict[str, Any] = {"scoring_func": "softmax", "topk_method": "gready"}
_DEEPSEEK_V3: dict[str, Any] = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2": {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768},
    "llama": {"vocab_size": 32000},
    "deepseek_v2": _DEEPSEEK_V2,
    "deepseek_v3": _DEEPSEEK_V3,
}
"""Defaults of the reference's configuration classes, where they differ from those below."""
MODEL_TYPES = tuple(_DEFAULTS)


@dataclass(frozen=True)
class TextConfig:
    """Architecture of a text model. With `tied` the head is the embedding; `predicts_ahead` says whether the
    layer for multi-token prediction is there."""

    model_type: str
    decoder: DecoderConfig
    tied: bool = False
    predicts_ahead: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of layers and experts by their names in the files, for `check_counts`."""
        moe = self.decoder.moe
        experts = {} if moe is None else {"mlp.experts": moe.num_experts}
        return {"model.layers": self.decoder.num_layers, **experts}


def parse_config(config: Section, names: Iterable[str] = ()) -> TextConfig:
    """The architecture in the content of a `config.json`, and in the `names` of the tensors, which alone say
    whether a layer for multi-token prediction is there. Raises `ConfigError`."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _DEFAULTS:
        raise model_type_error(config, map(repr, MODEL_TYPES))
    deepseek = model_type.startswith("deepseek")
    decoder = parse_deepseek(config, model_type) if deepseek else _parse_dense(config, model_type)
    tied = config.flag("tie_word_embeddings", False)
    extra = (f"model.layers.{decoder.num_layers}.", "ahead.")
    predicts_ahead = model_type == "deepseek_v3" and any(name.startswith(extra) for name in names)
    if predicts_ahead and config.integer("num_nextn_predict_layers", 1) != 1:
        raise ConfigError(f"{config.where}.num_nextn_predict_layers is above 1; accepted: 1")
    return TextConfig(model_type, decoder, tied, predicts_ahead)


def read_sampling(folder: Path) -> tuple[float, float]:
    """Temperature and top-p that `generation_config.json` of a folder recommends: R1 asks for 0.6 and 0.95,
    and repeats itself without end when it is greedy; 0 and 1 without. Raises `ConfigError`."""
    path = folder / "generation_config.json"
    section = Section(read_settings(path), str(path))
    if not section.flag("do_sample", section.get("temperature") is not None):
        return 0.0, 1.0
    return section.number("temperature", 1.0), section.number("top_p", 1.0)


def _with_defaults(section: Section, model_type: str) -> Section:
    values = {name: value for name, value in section.values.items() if value is not None}
    return Section({**_DEFAULTS[model_type], **values}, section.where)


def _check_heads(section: Section, hidden: int, heads: int, kv_heads: int) -> None:
    if not heads or hidden % heads:
        raise ConfigError(f"{section.where}: hidden_size {hidden} is no multiple of the {heads} heads")
    if not kv_heads or heads % kv_heads:
        raise ConfigError(f"{section.where}: {heads} heads can't share {kv_heads} key/value heads")


def _parse_dense(config: Section, model_type: str) -> DecoderConfig:
    """A Qwen2 or Llama decoder, whose q, k and v projections have biases or not."""
    section = _with_defaults(config, model_type)
    section.expect("hidden_act", "silu")
    section.expect("attention_bias", model_type == "qwen2")
    section.expect("mlp_bias", False)
    section.expect("use_sliding_window", False)
    hidden, heads = section.integer("hidden_size", 4096), section.integer("num_attention_heads", 32)
    kv_heads = section.integer("num_key_value_heads", 32 if model_type == "qwen2" else heads)
    given = section.get("head_dim") is not None
    _check_heads(section, heads if given else hidden, heads, kv_heads)
    head_dim = section.integer("head_dim", hidden // heads)
    if head_dim % 2:
        raise ConfigError(f"{section.where}: rotary dimensions of a head must be even")
    rotary = read_rotary(section, head_dim)
    return DecoderConfig(
        vocab_size=section.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=section.integer("intermediate_size", 11008),
        num_layers=section.integer("num_hidden_layers", 32),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=section.integer("max_position_embeddings", 2048),
        rms_norm_eps=section.number("rms_norm_eps", 1e-6),
        rope_theta=rotary.theta,
        frequencies=rotary.frequencies,
        rotary_scale=rotary.scale,
        qkv_bias=model_type == "qwen2",
    )


def parse_deepseek(section: Section, model_type: str = "deepseek_v2") -> DecoderConfig:
    """A decoder of DeepSeek-V2 or V3. Raises `ConfigError`."""
    latent = _parse_latent(section)  # an explicit null has a meaning there
    section = _with_defaults(section, model_type)
    section.expect("hidden_act", "silu")
    section.expect("attention_bias", False)
    section.expect("rope_interleave", True)
    hidden, heads = section.integer("hidden_size", 4096), section.integer("num_attention_heads", 32)
    kv_heads = section.integer("num_key_value_heads", heads)
    _check_heads(section, hidden, heads, kv_heads)
    head_dim = hidden // heads
    rotary_dim = head_dim if latent is None else latent.rope_dim
    if rotary_dim % 2:
        raise ConfigError(f"{section.where}: rotary dimensions of a head must be even")
    rotary = read_rotary(section, rotary_dim)
    if latent is not None:
        latent = replace(latent, score_factor=rotary.score_factor)
    return DecoderConfig(
        vocab_size=section.integer("vocab_size", 102400),
        hidden_size=hidden,
        intermediate_size=section.integer("intermediate_size", 11008),
        num_layers=section.integer("num_hidden_layers", 30),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=section.integer("max_position_embeddings", 2048),
        rms_norm_eps=section.number("rms_norm_eps", 1e-6),
        rope_theta=rotary.theta,
        frequencies=rotary.frequencies,
        rotary_scale=rotary.scale,
        latent=latent,
        moe=_parse_moe(section),
    )


def _parse_latent(section: Section) -> LatentConfig | None:
    """Latent attention; None if `use_mla` is false, where the sizes in the file are zero or null."""
    if not section.flag("use_mla", True):
        return None
    # An explicit null means queries without a low-rank projection; only a missing entry means the default.
    low_rank = section.get("q_lora_rank") is not None or "q_lora_rank" not in section.values
    latent = LatentConfig(
        kv_rank=section.integer("kv_lora_rank", 512),
        q_rank=section.integer("q_lora_rank", 1536) if low_rank else None,
        nope_dim=section.integer("qk_nope_head_dim", 128),
        rope_dim=section.integer("qk_rope_head_dim", 64),
        value_dim=section.integer("v_head_dim", 128),
    )
    if 0 in (latent.kv_rank, latent.nope_dim, latent.rope_dim, latent.value_dim):
        raise ConfigError(f"{section.where}: sizes of latent attention must be above 0 (or use_mla false)")
    return latent


def _parse_moe(section: Section) -> MoEConfig | None:
    """Mixture of experts, if any. V2's `topk_method` must be set: its default in the reference names none."""
    if section.get("n_routed_experts") is None:
        return None
    return MoEConfig(
        num_experts=section.integer("n_routed_experts"),
        top_k=section.integer("num_experts_per_tok"),
        expert_width=section.integer("moe_intermediate_size", 1407),
        num_shared=section.integer("n_shared_experts", 0),
        first_dense=section.integer("first_k_dense_replace", 0),
        every=section.integer("moe_layer_freq", 1),
        scoring=section.name("scoring_func"),
        method=section.name("topk_method"),
        num_groups=section.integer("n_group", 1),
        topk_group=section.integer("topk_group", 1),
        normalize=section.flag("norm_topk_prob", False),
        scale=section.number("routed_scaling_factor", 1.0),
    )
