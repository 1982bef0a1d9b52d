"""Sizes from the config alone against the real thing."""

import pytest
import torch
from bifrons.blocks.placement.memory_estimate import parameters_by_part
from bifrons.janus import variants as janus_sizes
from bifrons.janus.config import read_config
from bifrons.janus.model import JanusModel
from bifrons.vl2 import variants as vl2_sizes
from bifrons.vl2.config import read_config as read_vl2
from bifrons.vl2.model import VL2Model


@pytest.fixture
def janus(janus_mini):
    config, _ = read_config(janus_mini)
    with torch.device("meta"):
        return config, JanusModel(config)


def test_caches_are_those_that_are_allocated(janus):
    config, _ = janus
    for work in janus_sizes.workloads(config):
        for dtype in (torch.float32, torch.bfloat16):
            cache = config.decoder.new_cache(
                3 * work.rows, work.positions, device=torch.device("meta"), dtype=dtype
            )
            assert work.cache_bytes(3, dtype) == sum(b.numel() * b.itemsize for b in cache.buffers)
    guided, alone, _ = janus_sizes.workloads(config)
    assert guided.cache == 2 * alone.cache


def test_every_parameter_is_in_a_part(janus, janus_mini):
    _, model = janus
    total = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameters_by_part(model, janus_sizes.PARTS).values()) == total
    vl2 = read_vl2(janus_mini.parent / "vl2-mini-noaux")
    with torch.device("meta"):
        vl2_model = VL2Model(vl2)
    parts = parameters_by_part(vl2_model, vl2_sizes.PARTS)
    assert sum(parts.values()) == sum(parameter.numel() for parameter in vl2_model.parameters())
    assert parts[vl2_sizes.EXPERTS] > 0
    assert list(parts) == list(vl2_sizes.PARTS)
    for work in vl2_sizes.workloads(vl2):
        assert work.positions <= vl2.decoder.max_positions


def test_official_models_are_known_by_their_size(tmp_path, janus):
    config, _ = janus
    assert janus_sizes.variant(config, tmp_path) is None
    (tmp_path / "config.json").write_text(
        '{"model_type": "multi_modality", "vision_config": {"params": {"model_name": '
        '"siglip_large_patch16_384"}}, "language_config": {"hidden_size": 2048, "num_hidden_layers": 24, '
        '"num_attention_heads": 16, "intermediate_size": 5632, "vocab_size": 102400, '
        '"max_position_embeddings": 16384}}'
    )
    small, _ = read_config(tmp_path)
    assert janus_sizes.variant(small, tmp_path) == "Janus-Pro-1B or Janus-1.3B"
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [{"content": "<|User|>"}]}')
    assert janus_sizes.variant(small, tmp_path) == "Janus-Pro-1B"
    (tmp_path / "tokenizer.json").write_text("{}")
    assert janus_sizes.variant(small, tmp_path) == "Janus-1.3B"
    # 24 layers of two rows of 704 positions of 2 x 16 x 128 numbers in bfloat16
    work = janus_sizes.image_generation_workload(small, True)
    assert work.cache_bytes(1, torch.bfloat16) == 24 * 2 * 704 * 4096 * 2
