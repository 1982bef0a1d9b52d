"""Configs and tensor names: the three official releases, on meta, and a round trip of a small model."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from bifrons.blocks.checkpoints.formats import TensorEntry
from bifrons.blocks.checkpoints.key_mapping import check
from bifrons.blocks.checkpoints.reader import list_tensors
from bifrons.blocks.errors import ConfigError
from bifrons.blocks.model.context import LatentConfig
from bifrons.blocks.model.moe import MoEConfig
from bifrons.vl2.config import VL2Config, read_config
from bifrons.vl2.model import VL2Model
from bifrons.vl2.weight_names import keep_float32, key_map, official_tensors

DATA = Path(__file__).parent.parent / "data"
RELEASES = ("deepseek-vl2-tiny", "deepseek-vl2-small", "deepseek-vl2")


def official_config(name: str, folder: Path) -> VL2Config:
    shutil.copy(DATA / "vl2_official" / f"{name}.config.json", folder / "config.json")
    return read_config(folder)


def on_meta(config: VL2Config) -> VL2Model:
    with torch.device("meta"):
        return VL2Model(config)


@pytest.mark.parametrize("name", RELEASES)
def test_official_names_and_shapes_fit_strictly(name: str, tmp_path: Path):
    shapes = json.loads(gzip.decompress((DATA / "vl2_official" / f"{name}.keys.json.gz").read_bytes()))
    entries = {
        key: TensorEntry(key, torch.bfloat16, tuple(shape), Path("model.safetensors"), 0, 0)
        for key, shape in shapes.items()
    }
    model = on_meta(official_config(name, tmp_path))
    report = check(model, entries, key_map)
    assert report.ok, report.summary()
    assert report.unused
    assert all(name.startswith("vision.attn_pool.") for name in report.unused)
    lost = next(key for key in entries if ".experts.3.up_proj" in key)
    report = check(model, {key: entry for key, entry in entries.items() if key != lost}, key_map)
    assert len(report.missing) == 1
    assert "gate_up" in report.missing[0]
    assert not check(model, {**entries, "language.model.layers.0.extra": entries[lost]}, key_map).ok


def test_official_settings(tmp_path: Path):
    tiny, small, base = (official_config(name, tmp_path).decoder for name in RELEASES)
    assert (tiny.latent, tiny.head_dim, tiny.num_layers) == (None, 128, 12)
    assert small.latent == base.latent == LatentConfig(512, None, 128, 64, 128)
    assert (small.num_layers, small.num_heads, small.vocab_size) == (27, 16, 102400)
    assert (base.num_layers, base.num_heads, base.max_positions) == (30, 32, 4096)
    assert small.moe == MoEConfig(64, 6, 1408, 2, first_dense=1)
    assert base.moe == MoEConfig(72, 6, 1536, 2, 1, 1, "sigmoid", "noaux_tc", 1, 1, True, 2.0)
    config = official_config(RELEASES[1], tmp_path)
    assert (config.tile_side, len(config.candidates), config.vision.num_patches) == (14, 23, 729)


def test_defaults_are_the_references(tmp_path: Path):
    """What only the reference's classes say: a file with little in it."""
    language = {"topk_method": "greedy", "n_routed_experts": 8, "num_experts_per_tok": 2, "hidden_size": 2048}
    file = {"model_type": "deepseek_vl_v2", "language_config": language}
    (tmp_path / "config.json").write_text(json.dumps(file))
    config = read_config(tmp_path)
    decoder = config.decoder
    assert decoder.latent == LatentConfig(512, 1536, 128, 64, 128)
    assert (decoder.vocab_size, decoder.num_layers, decoder.num_heads) == (102400, 30, 32)
    assert (decoder.intermediate_size, decoder.max_positions, decoder.rope_theta) == (11008, 2048, 10000.0)
    assert decoder.moe == MoEConfig(8, 2, 1407)
    assert config.vision.gelu_tanh
    assert (config.vision.width, config.vision.layers, config.vision.heads) == (1152, 27, 16)
    del language["topk_method"]
    (tmp_path / "config.json").write_text(json.dumps(file))
    with pytest.raises(ConfigError, match="gready"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "multi_modality"}, "accepted: 'deepseek_vl_v2'"),
        ({"tile_tag": "1D"}, "tile_tag"),
        ({"candidate_resolutions": [[72, 72], [72, 100]]}, r"holds \[72, 100\]"),
        ({"candidate_resolutions": []}, "candidate_resolutions"),
        ({"projector_config": {"n_embed": 64}}, "n_embed is 64; accepted: 96"),
        ({"projector_config": {"n_embed": 96, "projector_type": "linear"}}, "projector_type"),
        ({"vision_config": {"model_name": "eye"}}, "width, layers"),
        ({"vision_config": {"width": 64, "heads": 5}}, "5 heads"),
        ({"language_config": {"hidden_size": 96, "num_attention_heads": 5}}, "5 heads"),
        ({"language_config": {"hidden_size": 96, "rope_scaling": {"type": "yarn"}}}, "rope_scaling"),
    ],
)
def test_configs_that_can_not_be_honoured(change: dict, message: str, tmp_path: Path):
    content = json.loads((DATA / "vl2-mini-mla" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path)


def test_writing_gives_the_official_names_back():
    folder = DATA / "vl2-mini-noaux"
    entries = list_tensors(folder)
    model = on_meta(read_config(folder))
    written = {
        name: tuple(piece.shape)
        for param, tensor in model.state_dict().items()
        for name, piece in official_tensors(param, tensor)
    }
    assert written == {e.name: e.shape for e in entries.values() if key_map(e.name) is not None}
    biases = [name for name in model.state_dict() if keep_float32(name)]
    assert biases == [f"language.model.layers.{n}.mlp.gate.e_score_correction_bias" for n in (1, 2, 3)]
