"""The architecture of a DeepSeek-VL2 model, read from `config.json`."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..blocks.errors import ConfigError
from ..blocks.foreign_files import model_type_error
from ..blocks.json_config import Section, read_json, shown
from ..blocks.model.context import DecoderConfig
from ..blocks.model.siglip import KNOWN_TOWERS, SiglipConfig, check_siglip, read_siglip
from ..text.config import parse_deepseek

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
    """The language model, one of DeepSeek-V2's kind with a head of its own."""
    section.expect("rope_scaling", None)
    section.expect("tie_word_embeddings", False)
    return parse_deepseek(section)
