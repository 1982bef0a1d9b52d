"""Sizes of Janus computed from the config alone, against the model."""

import pytest
import torch
from bifrons.blocks.placement.memory_estimate import parameters_by_part
from bifrons.janus import variants
from bifrons.janus.config import read_config
from bifrons.janus.model import JanusModel


@pytest.fixture
def janus(janus_mini):
    config, _ = read_config(janus_mini)
    with torch.device("meta"):
        return config, JanusModel(config)


def test_caches_are_those_that_are_allocated(janus):
    config, _ = janus
    for work in variants.workloads(config):
        for dtype in (torch.float32, torch.bfloat16):
            cache = config.decoder.new_cache(
                3 * work.rows, work.positions, device=torch.device("meta"), dtype=dtype
            )
            assert work.cache_bytes(3, dtype) == sum(b.numel() * b.itemsize for b in cache.buffers)
    guided, alone, _ = variants.workloads(config)
    assert guided.cache == 2 * alone.cache


def test_every_parameter_is_in_a_part(janus):
    _, model = janus
    total = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameters_by_part(model, variants.PARTS).values()) == total


def test_official_models_are_known_by_their_size(tmp_path, janus):
    config, _ = janus
    assert variants.variant(config, tmp_path) is None
    (tmp_path / "config.json").write_text(
        '{"model_type": "multi_modality", "vision_config": {"params": {"model_name": '
        '"siglip_large_patch16_384"}}, "language_config": {"hidden_size": 2048, "num_hidden_layers": 24, '
        '"num_attention_heads": 16, "intermediate_size": 5632, "vocab_size": 102400, '
        '"max_position_embeddings": 16384}}'
    )
    small, _ = read_config(tmp_path)
    assert variants.variant(small, tmp_path) == "Janus-Pro-1B or Janus-1.3B"
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [{"content": "<|User|>"}]}')
    assert variants.variant(small, tmp_path) == "Janus-Pro-1B"
    (tmp_path / "tokenizer.json").write_text("{}")
    assert variants.variant(small, tmp_path) == "Janus-1.3B"
    # 24 layers of two rows of 704 positions of 2 x 16 x 128 numbers in bfloat16
    work = variants.image_generation_workload(small, True)
    assert work.cache_bytes(1, torch.bfloat16) == 24 * 2 * 704 * 4096 * 2
