"""The architecture of a Janus model, read from `config.json` (original or transformers format)."""

from dataclasses import dataclass
from pathlib import Path

from ..blocks.errors import ConfigError
from ..blocks.foreign_files import model_type_error
from ..blocks.json_config import Section, read_json
from ..blocks.model.context import DecoderConfig
from ..blocks.model.siglip import SiglipConfig, check_siglip, read_siglip
from ..tokenizers.text import read_settings
from ..tokenizers.vq.config import VQConfig


@dataclass(frozen=True)
class JanusConfig:
    """Architecture of a Janus model. The projectors' output width is the decoder's.

    `tied` (transformers format only): the files may omit `lm_head.weight`, then the text embedding's.
    """

    vision: SiglipConfig
    decoder: DecoderConfig
    vq: VQConfig
    gen_head_width: int
    aligner_depth: int = 2
    gen_aligner_depth: int = 2
    tied: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens of a generated image."""
        side = self.vision.image_size // self.vq.downsampling
        return side, side

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of layers by their names in the files of either format, for `check_counts`."""
        layers, blocks = self.decoder.num_layers, self.vision.layers
        original = {"language_model.model.layers": layers, "vision_tower.blocks": blocks}
        return {**original, "language_model.layers": layers, "vision_model.encoder.layers": blocks}

    @property
    def num_codes(self) -> int:
        """Image tokens of a generated image."""
        return self.grid[0] * self.grid[1]


MODEL_TYPES = ("multi_modality", "janus")
"""`model_type` of the original format and of the transformers format."""


def read_config(folder: Path) -> tuple[JanusConfig, str]:
    """The architecture in `folder/config.json` and its `model_type`. Raises `ConfigError`."""
    path = folder / "config.json"
    return parse_config(Section(read_json(path), str(path)))


def parse_config(config: Section) -> tuple[JanusConfig, str]:
    """The architecture in the content of a `config.json` and its `model_type`. Raises `ConfigError`."""
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise model_type_error(config, MODEL_TYPES)
    parse = _parse_original if model_type == "multi_modality" else _parse_transformers
    result = parse(config)
    _check(result, config.where)
    return result, model_type


def read_guidance_scale(folder: Path) -> float | None:
    """The guidance scale that `generation_config.json` of a model folder recommends, at its top or under
    `generation_kwargs`; None if it has none.

    Other entries are ignored: they are defaults of transformers (such as top_k 50), which the reference does
    not use. Raises `ConfigError`.
    """
    path = folder / "generation_config.json"
    section = Section(read_settings(path), str(path))
    if section.get("guidance_scale") is None:
        section = section.section("generation_kwargs")
    return None if section.get("guidance_scale") is None else section.number("guidance_scale", 1.0)


def _parse_decoder(section: Section) -> DecoderConfig:
    """The Llama decoder, with the defaults of transformers' `LlamaConfig`."""
    section.expect("hidden_act", "silu")
    section.expect("attention_bias", False)
    section.expect("mlp_bias", False)
    rope = section.section("rope_parameters")
    rope.expect("rope_type", "default")
    if section.get("rope_scaling") not in (None, {}) and section.get("rope_scaling") != rope.values:
        raise ConfigError(f"{section.where}.rope_scaling is set; accepted: none")
    hidden, heads = section.integer("hidden_size", 4096), section.integer("num_attention_heads", 32)
    if not heads or hidden % heads:
        raise ConfigError(
            f"{section.where}: hidden_size {hidden} is no multiple of num_attention_heads {heads}"
        )
    return DecoderConfig(
        vocab_size=section.integer("vocab_size", 32000),
        hidden_size=hidden,
        intermediate_size=section.integer("intermediate_size", 11008),
        num_layers=section.integer("num_hidden_layers", 32),
        num_heads=heads,
        num_kv_heads=section.integer("num_key_value_heads", heads),
        head_dim=section.integer("head_dim", hidden // heads),
        max_positions=section.integer("max_position_embeddings", 2048),
        rms_norm_eps=section.number("rms_norm_eps", 1e-6),
        rope_theta=rope.number("rope_theta", section.number("rope_theta", 10000.0)),
    )


def _parse_original(config: Section) -> JanusConfig:
    """The official schema; `vision_config` and `gen_vision_config` may also state sizes of small models."""
    vision, vq = config.section("vision_config", "params"), config.section("gen_vision_config", "params")
    vision.expect("select_layer", -1)
    vision.expect("select_feature", "same")
    tower = read_siglip(vision, None, SiglipConfig())
    aligner, gen_aligner = (
        config.section(name, "params") for name in ("aligner_config", "gen_aligner_config")
    )
    for projector in (aligner, gen_aligner):
        projector.expect("projector_type", "mlp_gelu")
    decoder = _parse_decoder(config.section("language_config"))
    default = VQConfig()
    return JanusConfig(
        vision=tower,
        decoder=decoder,
        vq=VQConfig(
            codebook_size=vq.integer("image_token_size", default.codebook_size),
            code_dim=vq.integer("n_embed", default.code_dim),
            ch=vq.integer("ch", default.ch),
            ch_mult=vq.integers("ch_mult", default.ch_mult),
            z_channels=vq.integer("z_channels", default.z_channels),
            num_res_blocks=vq.integer("num_res_blocks", default.num_res_blocks),
            norm_groups=vq.integer("norm_groups", default.norm_groups),
            patch_width=vq.integer("patch_width", default.patch_width),
        ),
        gen_head_width=config.section("gen_head_config", "params").integer(
            "image_token_embed", decoder.hidden_size
        ),
        aligner_depth=aligner.integer("depth", 2),
        gen_aligner_depth=gen_aligner.integer("depth", 2),
    )


def _parse_transformers(config: Section) -> JanusConfig:
    """The schema of transformers' `JanusConfig`, with its defaults."""
    vision, vq = config.section("vision_config"), config.section("vq_config")
    vision.expect("hidden_act", "gelu")
    vision.expect("use_qk_norm", False)
    vision.expect("attention_bias", True)
    vision.expect("layer_norm_eps", 1e-6)
    vq.expect("double_latent", False)
    vq.expect("hidden_act", "gelu")
    decoder = _parse_decoder(config.section("text_config"))
    return JanusConfig(
        vision=SiglipConfig(
            image_size=vision.integer("image_size", 384),
            patch_size=vision.integer("patch_size", 16),
            width=vision.integer("hidden_size", 1024),
            layers=vision.integer("num_hidden_layers", 24),
            heads=vision.integer("num_attention_heads", 16),
            mlp_ratio=vision.number("mlp_ratio", 4.0),
        ),
        decoder=decoder,
        vq=VQConfig(
            codebook_size=vq.integer("num_embeddings", 16384),
            code_dim=vq.integer("embed_dim", 8),
            ch=vq.integer("base_channels", 128),
            ch_mult=vq.integers("channel_multiplier", (1, 1, 2, 2, 4)),
            z_channels=vq.integer("latent_channels", 256),
            num_res_blocks=vq.integer("num_res_blocks", 2),
        ),
        gen_head_width=vq.integer("image_token_embed_dim", decoder.hidden_size),
        aligner_depth=vision.integer("depth", 2),
        gen_aligner_depth=vq.integer("num_hidden_layers", 2),
        tied=config.flag("tie_word_embeddings", True),
    )


def _check(config: JanusConfig, where: str) -> None:
    """Raise `ConfigError` for sizes that would otherwise fail deep inside a module."""
    vision, vq, decoder = config.vision, config.vq, config.decoder
    check_siglip(vision, where)
    if vision.image_size % vq.downsampling:
        raise ConfigError(
            f"{where}: image_size {vision.image_size} is no multiple of {vq.downsampling} pixels a code"
        )
    if any((vq.ch * mult) % vq.norm_groups for mult in (1, *vq.ch_mult)):
        raise ConfigError(
            f"{where}: gen_vision channels {vq.ch} x {vq.ch_mult} are no multiples of {vq.norm_groups} "
            "(groups of a norm)"
        )
    if not decoder.num_kv_heads or decoder.num_heads % decoder.num_kv_heads:
        raise ConfigError(
            f"{where}: {decoder.num_heads} heads can't share {decoder.num_kv_heads} key/value heads"
        )
    if config.num_codes >= decoder.max_positions:
        raise ConfigError(
            f"{where}: {config.num_codes} image tokens exceed {decoder.max_positions} positions"
        )
