"""Sizes of VL2 computed from the config alone, against the model."""

import torch
from bifrons.blocks.placement.memory_estimate import parameters_by_part
from bifrons.vl2 import variants
from bifrons.vl2.config import read_config
from bifrons.vl2.model import VL2Model


def test_every_parameter_is_in_a_part(janus_mini):
    vl2 = read_config(janus_mini.parent / "vl2-mini-noaux")
    with torch.device("meta"):
        vl2_model = VL2Model(vl2)
    parts = parameters_by_part(vl2_model, variants.PARTS)
    assert sum(parts.values()) == sum(parameter.numel() for parameter in vl2_model.parameters())
    assert parts[variants.EXPERTS] > 0
    assert list(parts) == list(variants.PARTS)
    for work in variants.workloads(vl2):
        assert work.positions <= vl2.decoder.max_positions
