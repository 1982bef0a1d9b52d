"""What a DeepSeek-VL2 checkpoint is: the one place that reads its `config.json`, and the releases."""

from dataclasses import dataclass
from pathlib import Path

from ..blocks.errors import ConfigError
from ..blocks.json_config import Section, read_json
from ..blocks.model.decoder import DecoderConfig
from ..blocks.model.mla import LatentConfig
from ..blocks.model.moe import MoEConfig
from ..blocks.model.siglip import KNOWN_TOWERS, SiglipConfig

VARIANTS = {
    "DeepSeek-VL2-Tiny": "deepseek-ai/deepseek-vl2-tiny",
    "DeepSeek-VL2-Small": "deepseek-ai/deepseek-vl2-small",
    "DeepSeek-VL2": "deepseek-ai/deepseek-vl2",
}
"""Released models and their hub ids."""

MODEL_TYPE = "deepseek_vl_v2"

_TOWER = "siglip_so400m_patch14_384"


@dataclass(frozen=True)
class VL2Config:
    """What is a DeepSeek-VL2 model. `candidates`: (width, height) in pixels that a picture may take."""

    vision: SiglipConfig
    decoder: DecoderConfig
    candidates: tuple[tuple[int, int], ...]
    projector_depth: int = 2
    downsample: int = 2

    @property
    def tile_side(self) -> int:
        """Tokens along a side of a tile: patches, padded up to whole squares of `downsample`."""
        return -(-(self.vision.image_size // self.vision.patch_size) // self.downsample)


def read_config(folder: Path) -> VL2Config:
    """The architecture in `folder/config.json`; a `ConfigError` says what is off.

    What a file leaves out has the value of the reference's configuration classes, stated here.
    """
    path = folder / "config.json"
    config = Section(read_json(path), str(path))
    if config.get("model_type") != MODEL_TYPE:
        raise ConfigError(f"{path}: model_type is {config.get('model_type')!r}; accepted: {MODEL_TYPE!r}")
    config.expect("tile_tag", "2D")
    config.expect("global_view_pos", "head")
    vision, decoder = _read_vision(config.section("vision_config")), _read_decoder(config)
    projector = config.section("projector_config")
    projector.expect("projector_type", "downsample_mlp_gelu")
    projector.expect("mlp_ratio", 1)
    projector.expect("input_dim", vision.width)
    width = projector.integer("n_embed", 2048)
    if width != decoder.hidden_size:
        raise ConfigError(f"{projector.where}.n_embed is {width}; accepted: {decoder.hidden_size}")
    result = VL2Config(
        vision=vision,
        decoder=decoder,
        candidates=read_candidates(config, vision.image_size),
        projector_depth=projector.integer("depth", 2),
        downsample=projector.integer("downsample_ratio", 2),
    )
    if result.downsample < 1:
        raise ConfigError(f"{projector.where}.downsample_ratio is 0; accepted: 1 or more")
    return result


def read_candidates(section: Section, tile: int) -> tuple[tuple[int, int], ...]:
    """`candidate_resolutions`: (width, height) pairs, each a whole number of tiles; absent, one tile."""
    value = section.get("candidate_resolutions", [[tile, tile]])
    pairs = value if isinstance(value, list | tuple) else []
    found = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or any(type(n) is not int for n in pair):
            break
        if any(n < tile or n % tile for n in pair):
            break
        found.append((pair[0], pair[1]))
    if not found or len(found) != len(pairs):
        raise ConfigError(
            f"{section.where}.candidate_resolutions holds {pairs[len(found)] if pairs else value!r}; "
            f"accepted: a list of [width, height], both multiples of {tile}"
        )
    return tuple(found)


def _read_vision(section: Section) -> SiglipConfig:
    """The tower: a known one by its name, or any whose sizes are stated. All use the tanh GELU."""
    name = section.get("model_name", _TOWER)
    base = KNOWN_TOWERS.get(name)
    if base is None and section.get("width") is None:
        raise ConfigError(
            f"{section.where}.model_name is {name!r}; accepted: {_TOWER}, or any name with width, layers, "
            "heads and patch_size stated"
        )
    base = base or KNOWN_TOWERS[_TOWER]
    result = SiglipConfig(
        image_size=section.integer("image_size", base.image_size),
        patch_size=section.integer("patch_size", base.patch_size),
        width=section.integer("width", base.width),
        layers=section.integer("layers", base.layers),
        heads=section.integer("heads", base.heads),
        mlp_ratio=section.number("mlp_ratio", base.mlp_ratio),
        gelu_tanh=True,
    )
    if not result.heads or result.width % result.heads:
        raise ConfigError(f"{section.where}: width {result.width} is no multiple of its {result.heads} heads")
    if not result.patch_size or result.image_size < result.patch_size:
        raise ConfigError(
            f"{section.where}: image_size {result.image_size} holds no patch of {result.patch_size}"
        )
    return result


def _read_decoder(config: Section) -> DecoderConfig:
    """The language model: `DecoderConfig` from `DeepseekV2Config`'s settings and defaults."""
    section = config.section("language_config")
    section.expect("hidden_act", "silu")
    section.expect("attention_bias", False)
    section.expect("rope_scaling", None)
    section.expect("tie_word_embeddings", False)
    hidden, heads = section.integer("hidden_size", 4096), section.integer("num_attention_heads", 32)
    kv_heads = section.integer("num_key_value_heads", heads)
    if not heads or hidden % heads:
        raise ConfigError(f"{section.where}: hidden_size {hidden} is no multiple of the {heads} heads")
    if not kv_heads or heads % kv_heads:
        raise ConfigError(f"{section.where}: {heads} heads can't share {kv_heads} key/value heads")
    latent = _read_latent(section)
    head_dim = hidden // heads
    if (head_dim if latent is None else latent.rope_dim) % 2:
        raise ConfigError(f"{section.where}: rotary dimensions of a head must be even")
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
        rope_theta=section.number("rope_theta", 10000.0),
        latent=latent,
        moe=_read_moe(section),
    )


def _read_latent(section: Section) -> LatentConfig | None:
    """Latent attention, unless `use_mla` is false: then the file's zero and null sizes mean nothing."""
    if not section.get("use_mla", True):
        return None
    # An explicit null means queries without a low rank; only an absent entry takes the default.
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


def _read_moe(section: Section) -> MoEConfig | None:
    """Experts, if there are any. `topk_method` must be set: its default in the reference names no method."""
    if section.get("n_routed_experts") is None:
        return None
    return MoEConfig(
        num_experts=section.integer("n_routed_experts"),
        top_k=section.integer("num_experts_per_tok"),
        expert_width=section.integer("moe_intermediate_size", 1407),
        num_shared=section.integer("n_shared_experts", 0),
        first_dense=section.integer("first_k_dense_replace", 0),
        every=section.integer("moe_layer_freq", 1),
        scoring=section.get("scoring_func", "softmax"),
        method=section.get("topk_method", "gready"),
        num_groups=section.integer("n_group", 1),
        topk_group=section.integer("topk_group", 1),
        normalize=bool(section.get("norm_topk_prob", False)),
        scale=section.number("routed_scaling_factor", 1.0),
    )
