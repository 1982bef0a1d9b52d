"""The architecture of a DeepSeek-VL2 model, read from `config.json`."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..blocks.errors import ConfigError
from ..blocks.foreign_files import model_type_error
from ..blocks.json_config import Section, read_json, shown
from ..blocks.model.context import DecoderConfig, LatentConfig
from ..blocks.model.moe import MoEConfig
from ..blocks.model.siglip import KNOWN_TOWERS, SiglipConfig, check_siglip, read_siglip

MODEL_TYPE = "deepseek_vl_v2"

MAX_TILES, MAX_CANDIDATES = 64, 1000
"""Local tiles of a resolution, and resolutions, of a config: the released ones have 9 and 23."""

_TOWER = "siglip_so400m_patch14_384"


@dataclass(frozen=True)
class VL2Config:
    """Architecture of a DeepSeek-VL2 model. `candidates` are the resolutions (width, height) for tiling."""

    vision: SiglipConfig
    decoder: DecoderConfig
    candidates: tuple[tuple[int, int], ...]
    projector_depth: int = 2
    downsample: int = 2

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of layers and experts by their names in the files, for `check_counts`."""
        counts = {"language.model.layers": self.decoder.num_layers, "vision.blocks": self.vision.layers}
        return counts | ({} if self.decoder.moe is None else {"mlp.experts": self.decoder.moe.num_experts})

    @property
    def tile_side(self) -> int:
        """Tokens along a side of a tile: patches / `downsample`, rounded up."""
        return -(-(self.vision.image_size // self.vision.patch_size) // self.downsample)


def read_config(folder: Path) -> VL2Config:
    """The architecture in `folder/config.json`. Raises `ConfigError`."""
    path = folder / "config.json"
    return parse_config(Section(read_json(path), str(path)))


def parse_config(config: Section) -> VL2Config:
    """The architecture in the content of a `config.json`. Raises `ConfigError`.

    Missing settings have the defaults of the reference's configuration classes.
    """
    model_type = config.get("model_type")
    if model_type != MODEL_TYPE:
        raise model_type_error(config, (repr(MODEL_TYPE),))
    config.expect("tile_tag", "2D")
    config.expect("global_view_pos", "head")
    vision = _parse_vision(config.section("vision_config"))
    decoder = _parse_decoder(config.section("language_config"))
    projector = config.section("projector_config")
    projector.expect("projector_type", "downsample_mlp_gelu")
    projector.expect("mlp_ratio", 1)
    projector.expect("input_dim", vision.width)
    width = projector.integer("n_embed", 2048)
    if width != decoder.hidden_size:
        raise ConfigError(f"{projector.where}.n_embed is {width}; accepted: {decoder.hidden_size}")
    return VL2Config(
        vision=vision,
        decoder=decoder,
        candidates=parse_candidates(config, vision.image_size),
        projector_depth=projector.integer("depth", 2),
        downsample=projector.integer("downsample_ratio", 2),
    )


def parse_candidates(section: Section, tile: int) -> tuple[tuple[int, int], ...]:
    """`candidate_resolutions`: pairs (width, height), multiples of the tile side; if absent, one tile."""
    pairs = section.get("candidate_resolutions", [[tile, tile]])
    pairs = pairs if isinstance(pairs, list | tuple) and 0 < len(pairs) <= MAX_CANDIDATES else [pairs]
    for pair in pairs:
        valid = isinstance(pair, list | tuple) and len(pair) == 2 and all(type(n) is int for n in pair)
        if not valid or any(n < tile or n % tile for n in pair) or pair[0] * pair[1] > MAX_TILES * tile**2:
            raise ConfigError(
                f"{section.where}.candidate_resolutions holds {shown(pair)}; "
                f"accepted: a list of [width, height], both multiples of {tile}, of at most {MAX_TILES} tiles"
            )
    return tuple((width, height) for width, height in pairs)


def _parse_vision(section: Section) -> SiglipConfig:
    """The vision tower: a known one by its name, or one with stated sizes. All use the tanh GELU."""
    tower = read_siglip(section, _TOWER, KNOWN_TOWERS[_TOWER])
    check_siglip(tower, section.where)
    return replace(tower, gelu_tanh=True)


def _parse_decoder(section: Section) -> DecoderConfig:
    """The language model, with the settings and defaults of the reference's `DeepseekV2Config`."""
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
    latent = _parse_latent(section)
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
    """Mixture of experts, if any. `topk_method` must be set: its default in the reference names no method."""
    if section.get("n_routed_experts") is None:
        return None
    return MoEConfig(
        num_experts=section.integer("n_routed_experts"),
        top_k=section.integer("num_experts_per_tok"),
        expert_width=section.integer("moe_intermediate_size", 1407),
        num_shared=section.integer("n_shared_experts", 0),
        first_dense=section.integer("first_k_dense_replace", 0),
        every=section.integer("moe_layer_freq", 1),
        scoring=section.name("scoring_func", "softmax"),
        method=section.name("topk_method", "gready"),
        num_groups=section.integer("n_group", 1),
        topk_group=section.integer("topk_group", 1),
        normalize=section.flag("norm_topk_prob", False),
        scale=section.number("routed_scaling_factor", 1.0),
    )
